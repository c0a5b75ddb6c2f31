//! `tieline explain`

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{Output, SocketArgs, offline, verdict};
use crate::admin::{Explained, Request, client};

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

/// Exits 1 when a connection is denied. With `--queries` the answers are the
/// result, whatever they are: then it exits 1 only when one could not be given.
pub(super) fn main(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let lines = match &args.queries {
        Some(file) => read(file)?,
        None => single(args).to_string(),
    };
    let text = args.output == Output::Text;
    let explained = match &args.config {
        Some(config) => Explained::new(&offline::read(config)?.derived, &lines, text),
        None => serde_json::from_value(client::ask(
            &args.socket.socket,
            &Request::Explain { lines, text },
        )?)?,
    };
    if args.queries.is_none() && explained.errors > 0 {
        bail!("{}", error_of(&explained.output));
    }
    if args.queries.is_none() && !text {
        let answer: serde_json::Value = serde_json::from_str(&explained.output)?;
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        std::io::stdout().write_all(explained.output.as_bytes())?;
    }
    let bad = if args.queries.is_some() { explained.errors } else { explained.denied };
    Ok(verdict(bad == 0))
}

/// The words of an error, which is JSON if JSON was asked for.
fn error_of(output: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(output).ok();
    let words = value.as_ref().and_then(|value| value["error"].as_str());
    words.unwrap_or(output.trim()).to_owned()
}

fn single(args: &ExplainArgs) -> serde_json::Value {
    let mut query = serde_json::json!({
        "from": args.from,
        "to": args.to,
        "protocol": args.protocol,
        "port": args.port,
        "src_port": args.src_port,
        "icmp_type": args.icmp_type,
        "icmp_code": args.icmp_code,
    });
    if let Some(fields) = query.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    query
}

/// The text of a file, or of standard input for `-`.
pub(super) fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().lock().read_to_string(&mut text).context("standard input")?;
    } else {
        text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(text)
}
