//! Many connections: one JSON object per line in, one per line out.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde_json::Value;

use super::{Answer, Explainer, Query, Verdict};

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
    output: impl Write,
) -> io::Result<Summary> {
    answer_all(explainer, input, output, |explainer, line| {
        // Texts, numbers and values from JSON can be written as JSON.
        let answer = answer_line(explainer, line)
            .map_err(|refusal| serde_json::to_vec(&refusal).unwrap_or_default())?;
        Ok((answer.verdict, serde_json::to_vec(&answer).unwrap_or_default()))
    })
}

/// The same in words: an answer in several lines, then an empty one.
pub fn explain_text(
    explainer: &mut Explainer<'_>,
    input: impl BufRead,
    output: impl Write,
) -> io::Result<Summary> {
    answer_all(explainer, input, output, |explainer, line| {
        let answer = answer_line(explainer, line).map_err(|refusal| refusal.error.into_bytes())?;
        Ok((answer.verdict, answer.to_string().into_bytes()))
    })
}

/// Writes a line with the answer, or with what takes its place, for each line
/// that is not empty.
fn answer_all(
    explainer: &mut Explainer<'_>,
    input: impl BufRead,
    mut output: impl Write,
    answer: impl Fn(&mut Explainer<'_>, &[u8]) -> Result<(Verdict, Vec<u8>), Vec<u8>>,
) -> io::Result<Summary> {
    let mut summary = Summary::default();
    for line in input.split(b'\n') {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let text = match answer(explainer, &line) {
            Ok((Verdict::Allow, text)) => {
                summary.allowed += 1;
                text
            }
            Ok((Verdict::Deny, text)) => {
                summary.denied += 1;
                text
            }
            Err(text) => {
                summary.errors += 1;
                text
            }
        };
        output.write_all(&text)?;
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(summary)
}

fn answer_line(explainer: &mut Explainer<'_>, line: &[u8]) -> Result<Answer, Refusal> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| Refusal { id: None, error: format!("not a JSON object: {error}") })?;
    let id = value.get("id").cloned();
    let refuse = |error: String| Refusal { id: id.clone(), error };
    let query: Query = serde_json::from_value(value).map_err(|error| refuse(error.to_string()))?;
    explainer.explain(&query).map_err(|error| refuse(error.to_string()))
}
