//! `tieline flows`

use std::process::ExitCode;

use serde_json::Value;

use super::text::{Columns, Tone, paint};
use super::{Output, SocketArgs};
use crate::admin::{Request, client};

#[derive(Debug, clap::Args)]
pub(super) struct FlowsArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Only those of one end: NAMESPACE/POD, CLUSTER:NAMESPACE/POD, or an address
    #[arg(long, value_name = "END")]
    of: Option<String>,
    /// How many to show, those with most bytes first
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn main(args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    let request = Request::Flows { of: args.of.clone(), limit: args.limit };
    let answer = client::ask(&args.socket.socket, &request)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Text => print!("{}", render(&answer)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Plain text, as far as the answer has what this version knows of.
fn render(answer: &Value) -> String {
    let flows = answer["flows"].as_array().map(Vec::as_slice).unwrap_or_default();
    let matching = answer["matching"].as_u64().unwrap_or(0);
    let mut columns = Columns::default();
    for flow in flows {
        let text = |key: &str| flow[key].as_str().unwrap_or_default().to_owned();
        let denied = flow["verdict"] != "allow";
        let (verdict, tone) = if denied { ("denied", Tone::Bad) } else { ("allowed", Tone::Good) };
        let idle = flow["idle_seconds"].as_u64().unwrap_or(0);
        columns.row([
            text("protocol"),
            format!("{} -> {}", end(&flow["from"]), end(&flow["to"])),
            text("state"),
            format!("sent {}", traffic(&flow["sent"])),
            format!("answered {}", traffic(&flow["answered"])),
            format!("idle {idle} s"),
            paint(verdict, tone),
            flow["decided_by"].as_str().map_or_else(String::new, |by| format!("by {by}")),
        ]);
    }
    let shown = flows.len() as u64;
    let rest = match matching.saturating_sub(shown) {
        0 => String::new(),
        more => format!("{more} more: see --limit, --of\n"),
    };
    if matching == 0 { "no flows\n".to_owned() } else { columns.render(0) + &rest }
}

/// Who it is, and the address.
fn end(end: &Value) -> String {
    let address = end["address"].as_str().unwrap_or_default();
    let socket = match (end["port"].as_u64(), address.contains(':')) {
        (Some(port), true) => format!("[{address}]:{port}"),
        (Some(port), false) => format!("{address}:{port}"),
        (None, _) => address.to_owned(),
    };
    let identity = &end["identities"][0];
    match (identity["cluster"].as_str(), identity["name"].as_str()) {
        (Some("local"), Some(name)) => format!("{name} {socket}"),
        (Some(cluster), Some(name)) => format!("{cluster}:{name} {socket}"),
        _ => socket,
    }
}

fn traffic(traffic: &Value) -> String {
    let number = |key: &str| traffic[key].as_u64().unwrap_or(0);
    let bytes = number("bytes");
    let (amount, unit) = match bytes {
        0..10_000 => return format!("{} packets, {bytes} B", number("packets")),
        10_000..10_000_000 => (bytes / 1000, "kB"),
        10_000_000..10_000_000_000 => (bytes / 1_000_000, "MB"),
        _ => (bytes / 1_000_000_000, "GB"),
    };
    format!("{} packets, {amount} {unit}", number("packets"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flows_are_lines_for_people() {
        let answer = json!({"matching": 3, "flows": [
            {"protocol": "tcp", "state": "established", "verdict": "allow", "idle_seconds": 2,
             "from": {"address": "10.1.0.5", "port": 40000, "identities":
                [{"cluster": "local", "name": "shop/web"}]},
             "to": {"address": "fd00::5", "port": 80, "identities":
                [{"cluster": "db", "name": "shop/db"}]},
             "decided_by": "tier default, policy shop/web, rule 1",
             "sent": {"packets": 3, "bytes": 9999}, "answered": {"packets": 20, "bytes": 25_000}},
            {"protocol": "icmp", "state": "new", "verdict": "deny", "idle_seconds": 0,
             "from": {"address": "10.1.0.5", "identities": []},
             "to": {"address": "10.2.0.9", "identities": []},
             "sent": {"packets": 0, "bytes": 0}, "answered": {"packets": 0, "bytes": 0}},
        ]});
        let text = render(&answer);
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(lines[0]),
            "tcp shop/web 10.1.0.5:40000 -> db:shop/db [fd00::5]:80 established \
             sent 3 packets, 9999 B answered 20 packets, 25 kB idle 2 s allowed \
             by tier default, policy shop/web, rule 1"
        );
        assert_eq!(
            words(lines[1]),
            "icmp 10.1.0.5 -> 10.2.0.9 new sent 0 packets, 0 B answered 0 packets, 0 B idle 0 s denied"
        );
        assert_eq!(lines[2..], ["1 more: see --limit, --of"]);
        assert_eq!(render(&json!({"matching": 0, "flows": []})), "no flows\n");
    }
}
