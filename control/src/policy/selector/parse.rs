//! Text to syntax tree, in one pass with a stack of its own.
//!
//! The stack makes nesting cost memory in proportion to the text instead of
//! the thread's stack; the limits keep the trees that come out shallow enough
//! for the plain recursion in the rest of the module.

use std::sync::Arc;

use super::{Node, Test, negate, set};

/// Longest text that is read, in bytes. Calico admits 1,024 characters.
pub const MAX_BYTES: usize = 64 * 1024;

/// Deepest nesting of parentheses. A selector of 1,024 characters can't reach
/// it.
pub const MAX_DEPTH: usize = 512;

/// Longest label key, in bytes.
const MAX_KEY: usize = 512;

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at offset {offset}")]
pub struct SelectorError {
    /// Where in the text, in bytes from its start.
    pub offset: usize,
    /// What is wrong there, and what would be right.
    pub message: String,
}

/// An open group: the whole text, or what follows a `(`.
#[derive(Default)]
struct Group {
    /// An odd number of `!` stood before its `(`.
    negated: bool,
    /// Finished members of the `||` level.
    any: Vec<Arc<Node>>,
    /// Members of the `&&` level that is being read.
    all: Vec<Arc<Node>>,
}

impl Group {
    fn close_all(&mut self) {
        let all = std::mem::take(&mut self.all);
        self.any.push(single_or(all, Node::And));
    }

    fn close(mut self) -> Arc<Node> {
        self.close_all();
        let node = single_or(self.any, Node::Or);
        // As Calico: only signs that stand together cancel, so that `!(!has(a))`
        // prints as `!!has(a)`.
        if self.negated { Arc::new(Node::Not(node)) } else { node }
    }
}

fn single_or(mut members: Vec<Arc<Node>>, group: fn(Vec<Arc<Node>>) -> Node) -> Arc<Node> {
    match members.pop() {
        Some(only) if members.is_empty() => only,
        Some(last) => {
            members.push(last);
            Arc::new(group(members))
        }
        None => Arc::new(Node::All),
    }
}

pub(super) fn parse(text: &str) -> Result<Arc<Node>, SelectorError> {
    if text.len() > MAX_BYTES {
        let message = format!(
            "the selector has {} bytes, more than the {MAX_BYTES} that are read; split the policy",
            text.len()
        );
        return Err(SelectorError { offset: MAX_BYTES, message });
    }
    let mut reader = Reader { text, at: 0 };
    reader.skip_blanks();
    if reader.at == text.len() {
        return Ok(Arc::new(Node::All));
    }
    let mut outer: Vec<Group> = Vec::new();
    let mut group = Group::default();
    loop {
        let negated = reader.negations();
        if reader.take("(") {
            if outer.len() == MAX_DEPTH {
                return Err(reader.error(&format!("parentheses nested over {MAX_DEPTH} deep")));
            }
            outer.push(std::mem::replace(&mut group, Group { negated, ..Group::default() }));
            continue;
        }
        let node = reader.primary()?;
        group.all.push(if negated { negate(node) } else { node });
        // What may follow a complete member: any number of `)`, then one
        // operator or the end.
        loop {
            reader.skip_blanks();
            if reader.take("&&") {
                break;
            }
            if reader.take("||") {
                group.close_all();
                break;
            }
            if reader.at == text.len() {
                return if outer.is_empty() {
                    Ok(group.close())
                } else {
                    Err(reader.error("the selector ends before a ')'"))
                };
            }
            if !reader.take(")") {
                return Err(reader.unexpected("'&&', '||' or ')'"));
            }
            let Some(parent) = outer.pop() else {
                reader.at -= 1;
                return Err(reader.error("a ')' without its '('"));
            };
            let closed = std::mem::replace(&mut group, parent).close();
            group.all.push(closed);
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        // `at` only ever moves over whole characters; were it not so, the rest
        // would be empty and the text refused.
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Reads any number of `!`; whether they negate.
    fn negations(&mut self) -> bool {
        let mut negated = false;
        self.skip_blanks();
        while self.take("!") {
            negated = !negated;
            self.skip_blanks();
        }
        negated
    }

    /// A comparison or one of `all()`, `global()` and `has(key)`.
    fn primary(&mut self) -> Result<Arc<Node>, SelectorError> {
        let start = self.at;
        let word = self.key("a label, 'has(', 'all()', '(' or '!'")?;
        // A function's name is one only right before its parenthesis.
        let node = match word {
            "has" if self.take("(") => {
                self.skip_blanks();
                let key = self.key("a label")?;
                self.check_key(key)?;
                self.close_function("has(")?;
                Node::Label(key.into(), Test::Has)
            }
            "all" if self.take("(") => {
                self.close_function("all(")?;
                Node::All
            }
            "global" if self.take("(") => {
                self.close_function("global(")?;
                Node::Global
            }
            key => {
                self.check_key(key)?;
                if self.rest().starts_with('(') {
                    self.at = start;
                    let message = format!("no function {key:?}; there are has, all and global");
                    return Err(self.error(&message));
                }
                Node::Label(key.into(), self.test()?)
            }
        };
        Ok(Arc::new(node))
    }

    fn close_function(&mut self, name: &str) -> Result<(), SelectorError> {
        self.skip_blanks();
        if self.take(")") { Ok(()) } else { Err(self.unexpected(&format!("')' after '{name}'"))) }
    }

    fn key(&mut self, wanted: &str) -> Result<&'a str, SelectorError> {
        let rest = self.rest();
        let of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
        let len = rest.find(|c: char| !of_key(c)).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.unexpected(wanted));
        }
        self.at += len;
        Ok(&rest[..len])
    }

    fn check_key(&self, key: &str) -> Result<(), SelectorError> {
        if key.len() <= MAX_KEY {
            return Ok(());
        }
        let offset = self.at - key.len();
        Err(SelectorError { offset, message: format!("a label of over {MAX_KEY} characters") })
    }

    /// The operator and operand that follow a label.
    fn test(&mut self) -> Result<Test, SelectorError> {
        self.skip_blanks();
        if self.take("==") {
            return self.string().map(Test::Equals);
        }
        if self.take("!=") {
            return self.string().map(Test::NotEquals);
        }
        let start = self.at;
        if self.take("contains") {
            return self.string().map(Test::Contains);
        }
        if self.take_words("starts", "with") {
            return self.string().map(Test::StartsWith);
        }
        if self.take_words("ends", "with") {
            return self.string().map(Test::EndsWith);
        }
        if self.take_words("not", "in") {
            return self.set().map(Test::NotIn);
        }
        if self.take("in") {
            return self.set().map(Test::In);
        }
        self.at = start;
        Err(self.unexpected(
            "'==', '!=', 'in', 'not in', 'contains', 'starts with' or 'ends with' after the label",
        ))
    }

    fn take_words(&mut self, first: &str, second: &str) -> bool {
        let start = self.at;
        if self.take(first) {
            self.skip_blanks();
            if self.take(second) {
                return true;
            }
        }
        self.at = start;
        false
    }

    fn set(&mut self) -> Result<Box<[Box<str>]>, SelectorError> {
        self.skip_blanks();
        if !self.take("{") {
            return Err(self.unexpected("'{' and a set of strings"));
        }
        let mut values = Vec::new();
        loop {
            self.skip_blanks();
            if !self.rest().starts_with(['"', '\'']) {
                break;
            }
            values.push(self.string()?);
            self.skip_blanks();
            if !self.take(",") {
                break;
            }
        }
        if self.take("}") { Ok(set(values)) } else { Err(self.unexpected("a string or '}'")) }
    }

    fn string(&mut self) -> Result<Box<str>, SelectorError> {
        self.skip_blanks();
        let rest = self.rest();
        let quote = match rest.as_bytes().first() {
            Some(b'"') => '"',
            Some(b'\'') => '\'',
            _ => return Err(self.unexpected("a string in quotes")),
        };
        let Some((value, _)) = rest[1..].split_once(quote) else {
            return Err(self.error("a string without its closing quote"));
        };
        self.at += value.len() + 2;
        Ok(value.into())
    }

    fn unexpected(&self, wanted: &str) -> SelectorError {
        self.error(&match self.rest().chars().next() {
            None => format!("the selector ends where {wanted} should be"),
            Some(c) if c.is_whitespace() => {
                format!("{c:?} where {wanted} should be; only blanks and tabs may separate words")
            }
            Some(c) => format!("{c:?} where {wanted} should be"),
        })
    }

    fn error(&self, message: &str) -> SelectorError {
        SelectorError { offset: self.at, message: message.to_owned() }
    }
}
