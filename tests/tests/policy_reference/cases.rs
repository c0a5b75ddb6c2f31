//! Single cases with a name: what once went wrong, and what is easy to get
//! wrong.
