//! Many connections: one JSON object per line in, one per line out.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde_json::Value;

use super::{Explainer, Query, Verdict};

/// What came of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Connections that are allowed.
    pub allowed: usize,
    /// Connections that are denied.
    pub denied: usize,
    /// Lines without an answer.
    pub errors: usize,
}

/// An error in place of an answer.
#[derive(Debug, Serialize)]
struct Refusal {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    error: String,
}

/// Answers queries, one per line, in their order. A line that has no answer
/// gets `{"id":..,"error":".."}`; empty lines get none.
pub fn explain_lines(
    explainer: &mut Explainer<'_>,
    input: impl BufRead,
    mut output: impl Write,
) -> io::Result<Summary> {
    let mut summary = Summary::default();
    for line in input.split(b'\n') {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        match answer(explainer, &line) {
            Ok((verdict, answer)) => {
                match verdict {
                    Verdict::Allow => summary.allowed += 1,
                    Verdict::Deny => summary.denied += 1,
                }
                output.write_all(&answer)?;
            }
            Err(refusal) => {
                summary.errors += 1;
                serde_json::to_writer(&mut output, &refusal)?;
            }
        }
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(summary)
}

/// The same in words: an answer in several lines, then an empty one.
pub fn explain_text(
    explainer: &mut Explainer<'_>,
    input: impl BufRead,
    mut output: impl Write,
) -> io::Result<Summary> {
    let mut summary = Summary::default();
    for line in input.split(b'\n') {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let query = serde_json::from_slice::<Query>(&line).map_err(|error| error.to_string());
        match query.and_then(|query| explainer.explain(&query).map_err(|error| error.to_string())) {
            Ok(answer) => {
                match answer.verdict {
                    Verdict::Allow => summary.allowed += 1,
                    Verdict::Deny => summary.denied += 1,
                }
                writeln!(output, "{answer}")?;
            }
            Err(error) => {
                summary.errors += 1;
                writeln!(output, "{error}")?;
            }
        }
    }
    output.flush()?;
    Ok(summary)
}

fn answer(explainer: &mut Explainer<'_>, line: &[u8]) -> Result<(Verdict, Vec<u8>), Refusal> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| Refusal { id: None, error: format!("not a JSON object: {error}") })?;
    let id = value.get("id").cloned();
    let refuse = |error: String| Refusal { id: id.clone(), error };
    let query: Query = serde_json::from_value(value).map_err(|error| refuse(error.to_string()))?;
    let answer = explainer.explain(&query).map_err(|error| refuse(error.to_string()))?;
    let json = serde_json::to_vec(&answer).map_err(|error| refuse(error.to_string()))?;
    Ok((answer.verdict, json))
}
