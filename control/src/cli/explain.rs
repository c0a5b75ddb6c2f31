//! `tieline explain`

use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{Output, SocketArgs, offline, verdict};
use crate::admin::{Request, client};
use crate::policy::explain::{Explainer, Query, render};

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Work it out from this configuration and its manifests instead of asking
    /// the daemon
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Connections as JSON lines with the names of the flags below; `-` is
    /// standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to"])]
    queries: Option<PathBuf>,
    /// Source: NAMESPACE/POD, CLUSTER:NAMESPACE/POD, or an address
    #[arg(long, required_unless_present = "queries", requires = "to")]
    from: Option<String>,
    /// Destination, in the same forms
    #[arg(long, required_unless_present = "queries", requires = "from")]
    to: Option<String>,
    /// tcp, udp, sctp, icmp, icmpv6, or a number
    #[arg(long, default_value = "tcp")]
    protocol: String,
    /// Destination port
    #[arg(long)]
    port: Option<u16>,
    /// Source port
    #[arg(long)]
    src_port: Option<u16>,
    /// ICMP type
    #[arg(long)]
    icmp_type: Option<u8>,
    /// ICMP code
    #[arg(long)]
    icmp_code: Option<u8>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A connection that is asked about.
pub(super) struct Asked {
    pub(super) line: usize,
    pub(super) value: serde_json::Value,
    pub(super) query: Query,
}

/// Exits 1 when a connection is denied. With `--queries` the answers are the
/// result, whatever they are: then it exits 1 only when one could not be given.
pub(super) fn main(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let queries = match &args.queries {
        Some(file) => ask_all(file)?.into_iter().map(|asked| asked.query).collect(),
        None => vec![single(args)?],
    };
    let answers = match &args.config {
        Some(config) => {
            let mut explainer = Explainer::new(offline::read(config)?.derived);
            queries.iter().map(|query| explainer.answer_json(query)).collect()
        }
        None => online(&args.socket.socket, queries)?,
    };
    let mut out = std::io::stdout().lock();
    for answer in &answers {
        match (args.output, args.queries.is_some()) {
            (Output::Json, false) => writeln!(out, "{}", serde_json::to_string_pretty(answer)?)?,
            (Output::Json, true) => writeln!(out, "{answer}")?,
            (Output::Text, _) => writeln!(out, "{}", render(answer))?,
        }
    }
    let failed = answers.iter().any(|answer| answer.get("error").is_some());
    if args.queries.is_some() {
        return Ok(verdict(!failed));
    }
    if failed {
        return Ok(ExitCode::from(2));
    }
    let allowed = answers.iter().all(|answer| answer["verdict"] == "allow");
    Ok(verdict(allowed))
}

fn single(args: &ExplainArgs) -> anyhow::Result<Query> {
    let value = serde_json::json!({
        "from": args.from,
        "to": args.to,
        "protocol": args.protocol,
        "port": args.port,
        "src_port": args.src_port,
        "icmp_type": args.icmp_type,
        "icmp_code": args.icmp_code,
    });
    serde_json::from_value(value).context("not a connection")
}

/// The connections of a file of JSON lines.
pub(super) fn ask_all(file: &Path) -> anyhow::Result<Vec<Asked>> {
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let file_name = file.display();
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {file_name}"))?)
    };
    let mut all = Vec::new();
    for (at, text) in std::io::BufReader::new(input).lines().enumerate() {
        let (line, text) = (at + 1, text?);
        if text.trim().is_empty() {
            continue;
        }
        let place = || format!("{}: line {line} is not a connection", file.display());
        let mut value: serde_json::Value = serde_json::from_str(&text).with_context(place)?;
        let mut query = value.clone();
        if let Some(fields) = query.as_object_mut() {
            fields.remove("expect");
        }
        let query = serde_json::from_value(query).with_context(place)?;
        all.push(Asked { line, value: value.take(), query });
    }
    Ok(all)
}

fn online(socket: &Path, queries: Vec<Query>) -> anyhow::Result<Vec<serde_json::Value>> {
    match client::ask(socket, &Request::Explain { queries })? {
        serde_json::Value::Array(answers) => Ok(answers),
        other => bail!("the daemon answers with {other}"),
    }
}
