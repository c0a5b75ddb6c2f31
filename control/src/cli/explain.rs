//! `tieline explain`

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::{Value, json};

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
    #[arg(long, required_unless_present_any = ["queries", "from_labels", "from_namespace"])]
    from: Option<String>,
    /// Destination, in the same forms
    #[arg(long, required_unless_present_any = ["queries", "to_labels", "to_namespace"])]
    to: Option<String>,
    #[command(flatten)]
    hypothetical: HypotheticalArgs,
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

/// Pods that there are not. In a file with `--queries`, one is an object in the
/// place of its name: `{"from":{"namespace":"prod","labels":{"app":"web"}},...}`
/// with the fields cluster, namespace, labels, service_account and ports.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pods that there are not")]
struct HypotheticalArgs {
    /// Source: a pod with these labels, as in app=web,tier=frontend
    #[arg(long, value_name = "LABELS", conflicts_with_all = ["from", "queries"])]
    from_labels: Option<String>,
    /// Its namespace [default: default]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "queries"])]
    from_namespace: Option<String>,
    /// Its service account
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "queries"])]
    from_service_account: Option<String>,
    /// Its cluster: the name of the RemoteClusterConfiguration [default: local]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["from", "queries"])]
    from_cluster: Option<String>,
    /// Its named ports, as in http=8080,dns=53/udp
    #[arg(long, value_name = "PORTS", conflicts_with_all = ["from", "queries"])]
    from_ports: Option<String>,
    /// Destination: a pod with these labels
    #[arg(long, value_name = "LABELS", conflicts_with_all = ["to", "queries"])]
    to_labels: Option<String>,
    /// Its namespace [default: default]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "queries"])]
    to_namespace: Option<String>,
    /// Its service account
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "queries"])]
    to_service_account: Option<String>,
    /// Its cluster [default: local]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "queries"])]
    to_cluster: Option<String>,
    /// Its named ports
    #[arg(long, value_name = "PORTS", conflicts_with_all = ["to", "queries"])]
    to_ports: Option<String>,
}

impl HypotheticalArgs {
    fn from(&self) -> Value {
        present(json!({
            "labels": self.from_labels,
            "namespace": self.from_namespace,
            "service_account": self.from_service_account,
            "cluster": self.from_cluster,
            "ports": self.from_ports,
        }))
    }

    fn to(&self) -> Value {
        present(json!({
            "labels": self.to_labels,
            "namespace": self.to_namespace,
            "service_account": self.to_service_account,
            "cluster": self.to_cluster,
            "ports": self.to_ports,
        }))
    }
}

/// An object's fields that are not null.
fn present(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    object
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
        let answer: Value = serde_json::from_str(&explained.output)?;
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        std::io::stdout().write_all(explained.output.as_bytes())?;
    }
    let bad = if args.queries.is_some() { explained.errors } else { explained.denied };
    Ok(verdict(bad == 0))
}

/// The words of an error, which is JSON if JSON was asked for.
fn error_of(output: &str) -> String {
    let value: Option<Value> = serde_json::from_str(output).ok();
    let words = value.as_ref().and_then(|value| value["error"].as_str());
    words.unwrap_or(output.trim()).to_owned()
}

fn single(args: &ExplainArgs) -> Value {
    let end = |known: &Option<String>, hypothetical: Value| match known {
        Some(known) => Value::from(known.as_str()),
        None => hypothetical,
    };
    present(json!({
        "from": end(&args.from, args.hypothetical.from()),
        "to": end(&args.to, args.hypothetical.to()),
        "protocol": args.protocol,
        "port": args.port,
        "src_port": args.src_port,
        "icmp_type": args.icmp_type,
        "icmp_code": args.icmp_code,
    }))
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
