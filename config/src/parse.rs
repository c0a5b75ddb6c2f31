//! From a text to a configuration, with everything that is wrong with it.
//!
//! serde stops at the first error. Here the entry that an error is about is
//! taken out of the document, and the rest is read again, until no error is
//! left: every key has a default, so what is left is always complete. What
//! then stands is checked for sense ([`crate::check`]), and the problems of
//! both kinds are reported together, each with its place in the text.

use std::ops::Range;

use serde::Deserialize;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::error::{KeyPath, Position, Problem};
use crate::schema::Config;

type Document<'t> = toml::Spanned<DeTable<'t>>;

/// Reads a configuration, or says all that is wrong with the text.
pub(crate) fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mut problems: Vec<Problem> = errors.iter().map(|error| syntax(text, error)).collect();
        problems.dedup();
        return Err(problems);
    }
    let (config, mut problems) = read(text, document.clone());
    let unread: Vec<KeyPath> = problems.iter().map(|problem| problem.key.clone()).collect();
    for mut problem in config.problems() {
        // A key that could not be read has its default now, which is not what
        // the file says.
        if !unread.contains(&problem.key) {
            let span = locate(document.get_ref(), &problem.key);
            problem.position = span.map(|span| Position::of(text, span.start));
            problems.push(problem);
        }
    }
    problems.sort_by_key(|problem| problem.position);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn syntax(text: &str, error: &toml::de::Error) -> Problem {
    Problem {
        position: error.span().map(|span| Position::of(text, span.start)),
        key: KeyPath::default(),
        message: format!("not TOML: {}", one_line(error.message())),
        remedy: String::new(),
    }
}

/// Reads the entries that can be read, and says what is wrong with the others.
fn read(text: &str, mut document: Document<'_>) -> (Config, Vec<Problem>) {
    let mut problems = Vec::new();
    loop {
        let error = match Config::deserialize(Deserializer::from(document.clone())) {
            Ok(config) => return (config, problems),
            Err(error) => error,
        };
        let span = error.span();
        let key = span.clone().and_then(|span| remove(document.get_mut(), &span));
        let located = key.is_some();
        let key = KeyPath(key.unwrap_or_default());
        problems.push(Problem {
            position: span.map(|span| Position::of(text, span.start)),
            remedy: meaning(&key),
            key,
            message: one_line(error.message()),
        });
        if !located {
            // Nothing to take out, so no other problem can be told from this one.
            return (Config::default(), problems);
        }
    }
}

/// What the key of a problem means: whoever gave it a wrong value may not know.
fn meaning(key: &KeyPath) -> String {
    let path = key.to_string();
    let defaults = Config::default().keys();
    let Some(known) = defaults.iter().find(|known| known.path == path) else {
        return String::new();
    };
    let text: String = known.doc.concat();
    let sentence = text.trim().split(". ").next().unwrap_or_default().trim_end_matches('.');
    match &known.value {
        Some(value) => format!("{path} is: {sentence} (default {value})"),
        None => format!("{path} is: {sentence}"),
    }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Takes out the innermost entry whose name or value holds the span, and
/// returns its path.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let mut found = None;
    for (name, value) in table.iter_mut() {
        let name_text = name.get_ref().to_string();
        if holds(name.span()) {
            found = Some(name_text);
            break;
        }
        // The span of a section need not hold all of it: look inside first.
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(mut path) = remove(inner, span)
        {
            path.insert(0, name_text);
            return Some(path);
        }
        if holds(value.span()) {
            found = Some(name_text);
            break;
        }
    }
    let name = found?;
    table.remove(name.as_str());
    Some(vec![name])
}

/// Where an entry's value stands; that of the innermost section that is there,
/// if the entry itself is not.
fn locate(table: &DeTable<'_>, key: &KeyPath) -> Option<Range<usize>> {
    let mut table = table;
    let mut span = None;
    for part in &key.0 {
        let Some((name, value)) = table.get_key_value(part.as_str()) else { break };
        match value.get_ref() {
            DeValue::Table(inner) => {
                span = Some(name.span());
                table = inner;
            }
            _ => return Some(value.span()),
        }
    }
    span
}

#[cfg(test)]
mod tests;
