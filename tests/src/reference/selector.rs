//! Calico's selectors and Kubernetes' label selectors, evaluated as they are
//! read.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{list, text};

pub(super) type Labels = BTreeMap<String, String>;

/// Whether a selector chooses something with these labels. What `all()` and
/// `global()` are depends on where it stands.
pub(super) fn chooses(selector: &str, labels: &Labels, all: bool, global: bool) -> bool {
    let mut reader = Reader { rest: selector, labels, all, global };
    reader.blanks();
    if reader.rest.is_empty() {
        return all;
    }
    let chosen = reader.any();
    assert!(reader.rest.is_empty(), "{selector:?} ends in {:?}", reader.rest);
    chosen
}

struct Reader<'a> {
    rest: &'a str,
    labels: &'a Labels,
    all: bool,
    global: bool,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        self.blanks();
        rest.is_some()
    }

    fn expect(&mut self, token: &str) {
        assert!(self.take(token), "{token:?} is not where {:?} is", self.rest);
    }

    fn any(&mut self) -> bool {
        let mut chosen = self.every();
        while self.take("||") {
            chosen |= self.every();
        }
        chosen
    }

    fn every(&mut self) -> bool {
        let mut chosen = self.one();
        while self.take("&&") {
            chosen &= self.one();
        }
        chosen
    }

    fn one(&mut self) -> bool {
        if self.take("!") {
            return !self.one();
        }
        if self.take("(") {
            let chosen = self.any();
            self.expect(")");
            return chosen;
        }
        if self.take("all(") {
            self.expect(")");
            return self.all;
        }
        if self.take("global(") {
            self.expect(")");
            return self.global;
        }
        if self.take("has(") {
            let key = self.key();
            self.expect(")");
            return self.labels.contains_key(&key);
        }
        let key = self.key();
        let value = self.labels.get(&key).cloned();
        if self.take("==") {
            value == Some(self.string())
        } else if self.take("!=") {
            value != Some(self.string())
        } else if self.take("contains") {
            let part = self.string();
            value.is_some_and(|value| value.contains(&part))
        } else if self.take("starts") {
            self.expect("with");
            let part = self.string();
            value.is_some_and(|value| value.starts_with(&part))
        } else if self.take("ends") {
            self.expect("with");
            let part = self.string();
            value.is_some_and(|value| value.ends_with(&part))
        } else {
            let not = self.take("not");
            self.expect("in");
            self.expect("{");
            let mut found = false;
            while !self.take("}") {
                found |= value == Some(self.string());
                self.take(",");
            }
            found != not
        }
    }

    fn key(&mut self) -> String {
        let of_key = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        let end = self.rest.find(|c| !of_key(c)).unwrap_or(self.rest.len());
        let (key, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.blanks();
        key.to_owned()
    }

    fn string(&mut self) -> String {
        let quote = if self.rest.starts_with('"') { '"' } else { '\'' };
        let (value, rest) = self.rest[1..].split_once(quote).expect("a string in quotes");
        self.rest = rest;
        self.blanks();
        value.to_owned()
    }
}

/// Whether a Kubernetes label selector chooses these labels.
pub(super) fn label_selector_chooses(selector: &Value, labels: &Labels) -> bool {
    let wanted = selector["matchLabels"].as_object().into_iter().flatten();
    let mut wanted =
        wanted.map(|(key, value)| labels.get(key).map(String::as_str) == value.as_str());
    let expressions = list(selector, "/matchExpressions");
    wanted.all(|met| met)
        && expressions.iter().all(|expression| {
            let value = labels.get(text(expression, "/key"));
            let listed = |value: &String| {
                list(expression, "/values").iter().any(|one| one.as_str() == Some(value))
            };
            match text(expression, "/operator") {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// Whether a Kubernetes label selector has no condition.
pub(super) fn is_empty(selector: &Value) -> bool {
    let labels = selector["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty);
    labels && list(selector, "/matchExpressions").is_empty()
}
