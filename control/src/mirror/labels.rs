//! Labels as the Kubernetes API takes them, and which of their values are the
//! same to every selector.

use std::sync::Arc;

use ahash::HashMap;

use crate::policy::selector::Question;

/// Longest name of a label, and longest value, in bytes.
const LONGEST: usize = 63;
/// Longest prefix of a key, in bytes.
const LONGEST_PREFIX: usize = 253;

/// Values that stand for "some other value", unless a selector asks for them.
const OTHERS: [&str; 4] = ["other", "x", "0", "any"];

/// Whether the API takes a text as a label's key.
pub(super) fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(|prefix| prefix.len() <= LONGEST_PREFIX && is_subdomain(prefix))
        && !name.is_empty()
        && is_value(name)
}

/// Whether the API takes a text as a label's value.
pub(super) fn is_value(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let bytes = value.as_bytes();
    value.len() <= LONGEST && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

fn is_subdomain(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.split('.').all(|part| {
        !part.is_empty()
            && part.bytes().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    })
}

/// A class of values of one key: all selectors answer alike for them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    /// As if the label were absent.
    Absent,
    /// As for this value, which the API takes.
    Like(Arc<str>),
    /// Like no value that the API takes.
    Inexpressible(Arc<str>),
}

/// What selectors ask about one key.
#[derive(Debug)]
pub(super) struct Key<'a> {
    questions: Vec<Question<'a>>,
    writable: bool,
    /// Values to put in the place of others, first choice first.
    candidates: Vec<(Vec<bool>, Arc<str>)>,
    /// The class of values that no selector names.
    pub(super) unnamed: Option<Arc<str>>,
    absent: Vec<bool>,
    classes: HashMap<Box<str>, Class>,
}

impl<'a> Key<'a> {
    pub(super) fn new(key: &str, questions: Vec<Question<'a>>) -> Self {
        let answers = |value: Option<&str>| -> Vec<bool> {
            questions.iter().map(|question| question.answer(value)).collect()
        };
        let mut texts: Vec<&str> = questions.iter().flat_map(Question::texts).collect();
        texts.sort_unstable();
        texts.dedup();
        // What begins or ends with a text need not be a value as it stands.
        let around = texts.iter().flat_map(|text| {
            [format!("{text}x"), format!("x{text}"), format!("x{text}x")].into_iter()
        });
        let around: Vec<String> = around.collect();
        let values = texts.iter().copied().chain(OTHERS).chain(around.iter().map(String::as_str));
        let mut candidates: Vec<(Vec<bool>, Arc<str>)> = Vec::new();
        for value in values.filter(|value| is_value(value)) {
            let answers = answers(Some(value));
            if !candidates.iter().any(|(known, _)| *known == answers) {
                candidates.push((answers, value.into()));
            }
        }
        let unnamed = OTHERS.into_iter().find(|other| !texts.iter().any(|it| it == other));
        let absent = answers(None);
        let mut of = Self {
            questions,
            writable: is_key(key),
            candidates,
            unnamed: None,
            absent,
            classes: HashMap::default(),
        };
        of.unnamed = unnamed.and_then(|value| match of.class(value) {
            Class::Like(value) => Some(value),
            _ => None,
        });
        of
    }

    /// The class of a value: a function of the value and the questions, never
    /// of which values came before.
    pub(super) fn class(&mut self, value: &str) -> Class {
        if let Some(class) = self.classes.get(value) {
            return class.clone();
        }
        let answers: Vec<bool> = self.questions.iter().map(|it| it.answer(Some(value))).collect();
        let known = self.candidates.iter().find(|(of, _)| *of == answers);
        let class = match known {
            _ if answers == self.absent => Class::Absent,
            _ if !self.writable => Class::Inexpressible(value.into()),
            Some((_, like)) => Class::Like(like.clone()),
            None if is_value(value) => Class::Like(value.into()),
            None => Class::Inexpressible(value.into()),
        };
        self.classes.insert(value.into(), class.clone());
        class
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::selector::Selector;

    #[test]
    fn what_the_api_takes() {
        for key in ["app", "a.b/c", "pcns.projectcalico.org/name", "A_b.c-d"] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "/a", "a/", "A.b/c", "a/b/c", "-a", &"k".repeat(64)] {
            assert!(!is_key(key), "{key}");
        }
        assert!(is_value("") && is_value(&"v".repeat(63)) && is_value("a.b_c-D"));
        assert!(!is_value(&"v".repeat(64)) && !is_value("a-") && !is_value("a b"));
    }

    #[test]
    fn values_that_no_question_tells_apart_are_one() {
        let text = "k == 'a' || k in {'b', 'c'} || k starts with 'web-' || k != 'd'";
        let selector = Selector::parse(text).unwrap();
        let mut key = Key::new("k", selector.questions());
        let like = |value: &str| Class::Like(value.into());
        assert_eq!(key.class("a"), like("a"));
        assert_eq!(key.class("b"), key.class("c"));
        assert_eq!(key.class("web-1"), like("web-x"));
        assert_eq!(key.class("web-2"), like("web-x"));
        assert_eq!(key.class("d"), like("d"));
        // Nothing but `!=` is true of another value, as of no value.
        assert_eq!(key.class("e"), Class::Absent);
    }

    #[test]
    fn a_value_too_long_is_written_as_another_where_that_is_the_same() {
        let long = "v".repeat(64);
        let asks = Selector::parse("has(k) || k == 'a'").unwrap();
        assert_eq!(Key::new("k", asks.questions()).class(&long), Class::Like("other".into()));
        let names = Selector::equals("k", &long);
        let class = Key::new("k", names.questions()).class(&long);
        assert_eq!(class, Class::Inexpressible(long.as_str().into()));
        let either = Selector::one_of("k", [long.as_str(), "short"]);
        assert_eq!(Key::new("k", either.questions()).class(&long), Class::Like("short".into()));
    }
}
