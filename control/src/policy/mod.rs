//! Label policy: Calico and Kubernetes resources -> one internal model ->
//! address classes and verdict tables.
//!
//! ```text
//! api       resources as the API stores them, validated, trimmed
//! selector  the selector language
//! convert   api -> model: defaults, rewriting, order of tiers and policies
//! model     what the evaluator knows: tiers of policies of rules
//! compile   model x identities -> classes, programs, decisions
//! explain   one connection -> verdict by the compiled tables, and the story
//! ```

pub mod api;
pub mod compile;
pub mod convert;
pub mod explain;
pub mod model;
pub mod selector;

pub use compile::Compiled;
