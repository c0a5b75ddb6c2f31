//! The selector language: text -> [`Selector`], its canonical form, its value
//! over a set of labels, and the few ways to put selectors together.
//!
//! Promises: any text is parsed or refused in time proportional to its length,
//! never by recursion on it; two selectors that print the same are equal; what
//! is printed parses to a selector that chooses the same, and to an equal one
//! unless a negation negates another. Knows nothing of policies: where a
//! selector may say `global()` or how long it may be is the API's business.
//!
//! ```text
//! expr    := and { "||" and }
//! and     := unary { "&&" unary }
//! unary   := { "!" } primary                  "!a == 'b'" negates the comparison
//! primary := "(" expr ")" | "all()" | "global()" | "has(" key ")"
//!          | key ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
//!          | key ( "in" | "not in" ) "{" [ string { "," string } [ "," ] ] "}"
//! ```
//!
//! A missing label makes every comparison false but `!=` and `not in`, which
//! it makes true. Source: libcalico-go's selector package.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::state::Labels;

mod parse;
#[cfg(test)]
mod tests;

pub use parse::{MAX_BYTES, MAX_DEPTH, SelectorError};

/// A parsed selector. Cheap to clone; compared, hashed and ordered by its
/// canonical form.
#[derive(Clone)]
pub struct Selector(Arc<Inner>);

struct Inner {
    canonical: String,
    root: Arc<Node>,
    keys: Box<[Arc<str>]>,
}

/// One node of the syntax tree. Groups have at least two members.
#[derive(Debug)]
enum Node {
    All,
    Global,
    Label(Arc<str>, Test),
    Not(Arc<Node>),
    And(Vec<Arc<Node>>),
    Or(Vec<Arc<Node>>),
}

/// What is asked of one label.
#[derive(Debug, Clone)]
enum Test {
    Has,
    Equals(Box<str>),
    NotEquals(Box<str>),
    Contains(Box<str>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    /// Sorted, without repeats.
    In(Box<[Box<str>]>),
    NotIn(Box<[Box<str>]>),
}

/// A condition on one label that holds wherever a selector matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// The label has one of these values (of none: the selector never matches).
    OneOf(&'a str, &'a [Box<str>]),
    /// The label is there.
    Present(&'a str),
}

impl Selector {
    /// Reads a selector; an empty or blank one is `all()`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parse::parse(text).map(Self::new)
    }

    /// The selector that chooses everything.
    pub fn all() -> Self {
        Self::new(Arc::new(Node::All))
    }

    /// `has(key)`
    pub fn has(key: &str) -> Self {
        Self::new(Arc::new(Node::Label(key.into(), Test::Has)))
    }

    /// `key == value`
    pub fn equals(key: &str, value: &str) -> Self {
        Self::new(Arc::new(Node::Label(key.into(), Test::Equals(value.into()))))
    }

    /// `key in {values}`
    pub fn one_of<S: AsRef<str>>(key: &str, values: impl IntoIterator<Item = S>) -> Self {
        Self::new(Arc::new(Node::Label(key.into(), Test::In(set(values)))))
    }

    /// `key not in {values}`
    pub fn none_of<S: AsRef<str>>(key: &str, values: impl IntoIterator<Item = S>) -> Self {
        Self::new(Arc::new(Node::Label(key.into(), Test::NotIn(set(values)))))
    }

    /// What both choose. `all()` adds nothing.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        if self.is_all() {
            return other.clone();
        }
        if other.is_all() {
            return self.clone();
        }
        Self::new(Arc::new(Node::And(vec![self.0.root.clone(), other.0.root.clone()])))
    }

    /// What this one does not choose.
    #[must_use]
    pub fn negated(&self) -> Self {
        Self::new(negate(self.0.root.clone()))
    }

    /// The same conditions on labels whose keys begin with `prefix`.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> Self {
        Self::new(prefix_keys(&self.0.root, prefix))
    }

    /// With `all` and `global` in the places of `all()` and `global()`.
    #[must_use]
    pub fn replacing(&self, all: &Self, global: &Self) -> Self {
        Self::new(replace(&self.0.root, &all.0.root, &global.0.root))
    }

    /// Whether this is `all()`, written like that (others may choose everything
    /// too).
    pub fn is_all(&self) -> bool {
        matches!(*self.0.root, Node::All)
    }

    /// Whether this is `global()` and nothing else.
    pub fn is_global(&self) -> bool {
        matches!(*self.0.root, Node::Global)
    }

    /// Whether `global()` occurs anywhere.
    pub fn mentions_global(&self) -> bool {
        any_node(&self.0.root, &|node| matches!(node, Node::Global))
    }

    /// Whether the selector chooses something with these labels. `global()`
    /// counts as true.
    pub fn matches(&self, labels: &Labels) -> bool {
        evaluate(&self.0.root, labels)
    }

    /// The keys of the labels that the selector can see, ascending: a change of
    /// any other label never changes what it chooses.
    pub fn keys(&self) -> &[Arc<str>] {
        &self.0.keys
    }

    /// The narrowest condition on one label that holds wherever the selector
    /// matches, if there is one: an index need not ask selectors whose
    /// requirement a set of labels does not meet.
    pub fn requirement(&self) -> Option<Requirement<'_>> {
        requirement(&self.0.root)
    }

    /// The conditions that must all hold: the members of `&&` at the top, and of
    /// those within them; the selector itself if it is no such group.
    pub fn conjuncts(&self) -> Vec<Self> {
        fn collect(node: &Arc<Node>, all: &mut Vec<Selector>) {
            match &**node {
                Node::And(members) => members.iter().for_each(|member| collect(member, all)),
                _ => all.push(Selector::new(node.clone())),
            }
        }
        let mut all = Vec::new();
        collect(&self.0.root, &mut all);
        all
    }

    /// The canonical form.
    pub fn as_str(&self) -> &str {
        &self.0.canonical
    }

    fn new(root: Arc<Node>) -> Self {
        let mut canonical = String::new();
        print(&root, &mut canonical);
        let mut keys = BTreeSet::new();
        collect_keys(&root, &mut keys);
        Self(Arc::new(Inner { canonical, root, keys: keys.into_iter().collect() }))
    }
}

fn set<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> Box<[Box<str>]> {
    let values: BTreeSet<Box<str>> = values.into_iter().map(|v| v.as_ref().into()).collect();
    values.into_iter().collect()
}

/// Two negations cancel, so that what is printed parses to the same tree.
fn negate(node: Arc<Node>) -> Arc<Node> {
    match &*node {
        Node::Not(inner) => inner.clone(),
        _ => Arc::new(Node::Not(node)),
    }
}

fn evaluate(node: &Node, labels: &Labels) -> bool {
    match node {
        Node::All | Node::Global => true,
        Node::Label(key, test) => test.holds(labels.get(&**key).map(String::as_str)),
        Node::Not(inner) => !evaluate(inner, labels),
        Node::And(members) => members.iter().all(|member| evaluate(member, labels)),
        Node::Or(members) => members.iter().any(|member| evaluate(member, labels)),
    }
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let Some(value) = value else {
            return matches!(self, Self::NotEquals(_) | Self::NotIn(_));
        };
        match self {
            Self::Has => true,
            Self::Equals(wanted) => value == &**wanted,
            Self::NotEquals(refused) => value != &**refused,
            Self::Contains(part) => value.contains(&**part),
            Self::StartsWith(part) => value.starts_with(&**part),
            Self::EndsWith(part) => value.ends_with(&**part),
            Self::In(set) => contains(set, value),
            Self::NotIn(set) => !contains(set, value),
        }
    }
}

fn contains(set: &[Box<str>], value: &str) -> bool {
    set.binary_search_by(|member| (**member).cmp(value)).is_ok()
}

fn any_node(node: &Node, wanted: &dyn Fn(&Node) -> bool) -> bool {
    wanted(node)
        || match node {
            Node::Not(inner) => any_node(inner, wanted),
            Node::And(members) | Node::Or(members) => members.iter().any(|m| any_node(m, wanted)),
            Node::All | Node::Global | Node::Label(..) => false,
        }
}

fn collect_keys(node: &Node, keys: &mut BTreeSet<Arc<str>>) {
    match node {
        Node::All | Node::Global => {}
        Node::Label(key, _) => {
            keys.insert(key.clone());
        }
        Node::Not(inner) => collect_keys(inner, keys),
        Node::And(members) | Node::Or(members) => {
            members.iter().for_each(|member| collect_keys(member, keys));
        }
    }
}

fn prefix_keys(node: &Arc<Node>, prefix: &str) -> Arc<Node> {
    match &**node {
        Node::Label(key, test) => {
            Arc::new(Node::Label(format!("{prefix}{key}").into(), test.clone()))
        }
        _ => rebuild(node, &|member| prefix_keys(member, prefix)),
    }
}

fn replace(node: &Arc<Node>, all: &Arc<Node>, global: &Arc<Node>) -> Arc<Node> {
    match &**node {
        Node::All => all.clone(),
        Node::Global => global.clone(),
        _ => rebuild(node, &|member| replace(member, all, global)),
    }
}

/// The node with each member changed.
fn rebuild(node: &Arc<Node>, change: &dyn Fn(&Arc<Node>) -> Arc<Node>) -> Arc<Node> {
    match &**node {
        Node::All | Node::Global | Node::Label(..) => node.clone(),
        Node::Not(inner) => negate(change(inner)),
        Node::And(members) => Arc::new(Node::And(members.iter().map(change).collect())),
        Node::Or(members) => Arc::new(Node::Or(members.iter().map(change).collect())),
    }
}

fn requirement(node: &Node) -> Option<Requirement<'_>> {
    match node {
        Node::All | Node::Global | Node::Not(_) | Node::Or(_) => None,
        Node::Label(key, test) => match test {
            Test::Equals(value) => Some(Requirement::OneOf(key, std::slice::from_ref(value))),
            Test::In(values) => Some(Requirement::OneOf(key, values)),
            Test::Has | Test::Contains(_) | Test::StartsWith(_) | Test::EndsWith(_) => {
                Some(Requirement::Present(key))
            }
            Test::NotEquals(_) | Test::NotIn(_) => None,
        },
        Node::And(members) => {
            members.iter().filter_map(|member| requirement(member)).min_by_key(Requirement::width)
        }
    }
}

impl Requirement<'_> {
    /// A guess at how much meets the requirement. Labels that Calico itself
    /// puts on endpoints are shared by many of them.
    fn width(&self) -> (bool, bool, usize) {
        let (key, values) = match self {
            Self::OneOf(key, values) => (key, Some(values.len())),
            Self::Present(key) => (key, None),
        };
        let everywhere = *key == "projectcalico.org/orchestrator" || values.is_none();
        (everywhere, key.starts_with("projectcalico.org/"), values.unwrap_or(usize::MAX))
    }
}

fn print(node: &Node, out: &mut String) {
    match node {
        Node::All => out.push_str("all()"),
        Node::Global => out.push_str("global()"),
        Node::Label(key, test) => print_test(key, test, out),
        Node::Not(inner) => {
            out.push('!');
            print(inner, out);
        }
        Node::And(members) => print_group(members, " && ", out),
        Node::Or(members) => print_group(members, " || ", out),
    }
}

fn print_group(members: &[Arc<Node>], operator: &str, out: &mut String) {
    out.push('(');
    for (place, member) in members.iter().enumerate() {
        if place > 0 {
            out.push_str(operator);
        }
        print(member, out);
    }
    out.push(')');
}

fn print_test(key: &str, test: &Test, out: &mut String) {
    let mut compare = |operator: &str, value: &str| {
        out.push_str(key);
        out.push_str(operator);
        print_string(value, out);
    };
    match test {
        Test::Has => {
            out.push_str("has(");
            out.push_str(key);
            out.push(')');
        }
        Test::Equals(value) => compare(" == ", value),
        Test::NotEquals(value) => compare(" != ", value),
        Test::Contains(value) => compare(" contains ", value),
        Test::StartsWith(value) => compare(" starts with ", value),
        Test::EndsWith(value) => compare(" ends with ", value),
        Test::In(values) => print_set(key, " in {", values, out),
        Test::NotIn(values) => print_set(key, " not in {", values, out),
    }
}

fn print_set(key: &str, operator: &str, values: &[Box<str>], out: &mut String) {
    out.push_str(key);
    out.push_str(operator);
    for (place, value) in values.iter().enumerate() {
        if place > 0 {
            out.push_str(", ");
        }
        print_string(value, out);
    }
    out.push('}');
}

/// The language has no escapes: a value holds at most one kind of quote.
fn print_string(value: &str, out: &mut String) {
    let quote = if value.contains('"') { '\'' } else { '"' };
    out.push(quote);
    out.push_str(value);
    out.push(quote);
}

impl fmt::Display for Selector {
    /// Prints the canonical form: groups in parentheses and as they were
    /// nested, double quotes unless the value holds one, sets sorted and
    /// without repeats.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.canonical)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.0.canonical)
    }
}

impl Default for Selector {
    fn default() -> Self {
        Self::all()
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.canonical == other.0.canonical
    }
}

impl Eq for Selector {}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.canonical.cmp(&other.0.canonical)
    }
}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.canonical.hash(state);
    }
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}
