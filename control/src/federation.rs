//! The life cycle of remote clusters.
