//! Sources: what a cluster's objects are right now.
