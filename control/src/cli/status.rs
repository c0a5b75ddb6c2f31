//! `tieline status`

use std::process::ExitCode;

use anyhow::Context;

use super::text::{Columns, Tone, paint};
use super::{Output, SocketArgs, verdict};
use crate::admin::status::{ConditionStatus, Status};
use crate::admin::{Request, client};

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Exits 1 when the daemon is not ready or something that was asked for is not
/// in force.
pub(super) fn main(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let answer = client::ask(&args.socket.socket, &Request::Status)?;
    let status: Status = serde_json::from_value(answer.clone())
        .context("the daemon is of another version than this command")?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Output::Text => print!("{}", render(&status)),
    }
    let errors = status.conditions.iter().any(|condition| condition.severity == "error");
    Ok(verdict(status.ready && status.config.error.is_none() && !errors))
}

fn render(status: &Status) -> String {
    let mut out = String::new();
    let mut section = |title: &str, columns: Columns| {
        let body = columns.render(2);
        if !body.is_empty() {
            out.push_str(&format!("{}\n{body}\n", paint(title, Tone::Strong)));
        }
    };
    section("node", node(status));
    section("ports", ports(status));
    section("workers", workers(status));
    section("clusters", clusters(&status.clusters));
    section("told to Felix", felix(&status.felix));
    section("tunnel ends", vteps(status));
    section("tables", tables(status));
    section("packets", counted(&status.counters));
    section("drops", counted(&status.drops));
    section("conditions", conditions(&status.conditions));
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn node(status: &Status) -> Columns {
    let mut columns = Columns::default();
    let state =
        if status.ready { paint("ready", Tone::Good) } else { paint("not ready", Tone::Bad) };
    columns.row(["name", &status.node]);
    columns.row(["state", &state]);
    columns.row(["version", &status.version]);
    columns.row(["up", &format!("{} s", status.uptime_seconds)]);
    let memory = status.memory;
    columns.row(["memory", &on_pages(memory.resident_bytes, memory.huge_bytes)]);
    columns.row(["config", &status.config.path]);
    if let Some(error) = &status.config.error {
        columns.row(["", &paint(&format!("not in force: {error}"), Tone::Bad)]);
    }
    if !status.config.restart_needed_for.is_empty() {
        let keys = status.config.restart_needed_for.join(", ");
        columns.row(["", &paint(&format!("restart to take over {keys}"), Tone::Warn)]);
    }
    columns
}

fn ports(status: &Status) -> Columns {
    let mut columns = Columns::default();
    for device in &status.underlay {
        columns.row([
            device.device.clone(),
            device.mode.clone(),
            format!("{} queue{}", device.queues, if device.queues == 1 { "" } else { "s" }),
            format!("MTU {}", device.mtu),
            device.addresses.join(" "),
        ]);
    }
    if let Some(gateway) = &status.gateway {
        columns.row([
            format!("{}/{}", gateway.device, gateway.peer),
            gateway.mode.clone(),
            String::new(),
            format!("MTU {}", gateway.mtu),
            format!("{} routes in the kernel", gateway.routes),
        ]);
    }
    columns
}

fn workers(status: &Status) -> Columns {
    let mut columns = Columns::default();
    for worker in &status.workers {
        let cpu = worker.cpu.map_or("not pinned".into(), |cpu| format!("CPU {cpu}"));
        let cpu = match worker.cpu_wanted.filter(|_| worker.cpu != worker.cpu_wanted) {
            Some(wanted) => paint(&format!("{cpu}, should be CPU {wanted}"), Tone::Warn),
            None => cpu,
        };
        let lost = worker.underlay_port.receive_dropped + worker.gateway_port.receive_dropped;
        columns.row([
            worker.worker.to_string(),
            worker.underlay.clone(),
            cpu,
            format!("{}/{} frames free ({})", worker.frames_free, worker.frames, worker.pages),
            format!(
                "underlay rx {} tx {}",
                worker.underlay_port.received, worker.underlay_port.sent
            ),
            format!("gateway rx {} tx {}", worker.gateway_port.received, worker.gateway_port.sent),
            format!("{lost} lost before us"),
        ]);
    }
    columns
}

/// The clusters' own account is JSON whose fields are their own; people get the
/// ones that they ask for first.
fn clusters(clusters: &serde_json::Value) -> Columns {
    let mut columns = Columns::default();
    cluster(&mut columns, "local", &clusters["local"]);
    for (name, remote) in clusters["remotes"].as_object().into_iter().flatten() {
        cluster(&mut columns, name, remote);
    }
    columns
}

fn cluster(columns: &mut Columns, name: &str, cluster: &serde_json::Value) {
    let text = |key: &str| cluster[key].as_str().unwrap_or_default().to_owned();
    let seconds = |key: &str| Some(cluster[key].as_u64()? / 1000);
    let state = match text("state") {
        state if state.is_empty() => return,
        state if state == "InSync" => paint(&state, Tone::Good),
        state => paint(&state, Tone::Bad),
    };
    columns.row([
        name.to_owned(),
        state,
        seconds("state_for_ms").map_or_else(String::new, |s| format!("for {s} s")),
        seconds("last_event_ms").map_or_else(String::new, |s| format!("last event {s} s ago")),
        text("origin"),
        text("overlay_reason"),
    ]);
    let kinds = cluster["objects"].as_object().into_iter().flatten();
    let mut kinds: Vec<_> = kinds.map(|(kind, count)| format!("{count} {kind}")).collect();
    kinds.extend(cluster["calico_group"].as_str().map(|group| format!("Calico's in {group}")));
    if !kinds.is_empty() {
        columns.note(&kinds.join(", "));
    }
    if let Some(error) = cluster["error"].as_str() {
        columns.note(&paint(error, Tone::Bad));
    }
}

/// What was written for Felix: by whom, and how much.
fn felix(felix: &serde_json::Value) -> Columns {
    let mut columns = Columns::default();
    let text = |key: &str| felix.get(key).and_then(serde_json::Value::as_str);
    if let Some(state) = text("state") {
        let reason = text("reason").unwrap_or_default();
        columns.row(["state", format!("{state} {reason}").trim_end()]);
        columns.row(["writer", text("writer").unwrap_or("nobody")]);
    }
    if let Some(storage) = text("storage") {
        columns.row(["written to", storage]);
    }
    if let Some(at) = text("last_write") {
        let waiting = felix.get("waiting").and_then(serde_json::Value::as_u64).unwrap_or(0);
        columns.row(["last write", &format!("{at}, {waiting} objects to be written")]);
    }
    let clusters = felix.get("clusters").and_then(serde_json::Value::as_object);
    for (name, cluster) in clusters.into_iter().flatten() {
        let count = |key: &str| cluster.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (sets, addresses) = (count("sets"), count("addresses"));
        columns.row(["mirrored", &format!("{name}: {addresses} addresses in {sets} sets")]);
    }
    let pools = felix.get("pools").and_then(serde_json::Value::as_array);
    for pool in pools.into_iter().flatten().filter_map(serde_json::Value::as_str) {
        columns.row(["pool", pool]);
    }
    columns
}

fn vteps(status: &Status) -> Columns {
    let mut columns = Columns::default();
    for vtep in &status.vteps {
        let tone = if vtep.resolved { Tone::Good } else { Tone::Bad };
        columns.row([
            format!("{}:{}", vtep.cluster, vtep.node),
            vtep.underlay.clone(),
            vtep.mac.clone(),
            paint(&vtep.adjacency, tone),
        ]);
    }
    columns
}

fn tables(status: &Status) -> Columns {
    let tables = &status.tables;
    let mut columns = Columns::default();
    columns.row([
        format!("generation {}", tables.generation),
        format!("{} routes", tables.routes),
        format!("{} tunnel ends", tables.vteps),
        format!("{} addresses", tables.endpoints),
        format!("{} prefixes", tables.prefixes),
        format!("{} policies", tables.policies),
    ]);
    columns.row([
        format!("flows {}/{}", tables.flows, tables.flow_capacity),
        on_pages(tables.flow_bytes, tables.flow_huge_bytes),
    ]);
    columns
}

/// Memory, and what of it is on large pages.
fn on_pages(bytes: usize, huge: usize) -> String {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    format!("{:.1} MiB, {:.0} MiB of it on 2 MiB pages", mib(bytes), mib(huge))
}

fn counted(counters: &std::collections::BTreeMap<String, u64>) -> Columns {
    let mut columns = Columns::default();
    for (name, count) in counters {
        columns.row([name.clone(), count.to_string()]);
    }
    columns
}

fn conditions(conditions: &[ConditionStatus]) -> Columns {
    let mut columns = Columns::default();
    for condition in conditions {
        let tone = if condition.severity == "error" { Tone::Bad } else { Tone::Warn };
        columns.row([
            paint(&condition.severity, tone),
            condition.cluster.clone(),
            condition.object.clone(),
            condition.message.clone(),
        ]);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{MemoryStatus, TableStatus, WorkerStatus};

    #[test]
    fn pages_and_cpus_are_shown() {
        let worker = |cpu, cpu_wanted| WorkerStatus {
            cpu,
            cpu_wanted,
            pages: "2 MiB reserved".into(),
            ..WorkerStatus::default()
        };
        let text = render(&Status {
            memory: MemoryStatus { resident_bytes: 33 << 20, huge_bytes: 12 << 20 },
            workers: vec![worker(Some(3), Some(3)), worker(None, Some(3)), worker(None, None)],
            tables: TableStatus {
                flow_bytes: (9 << 20) / 2,
                flow_huge_bytes: 4 << 20,
                ..TableStatus::default()
            },
            ..Status::default()
        });
        for words in [
            "memory   33.0 MiB, 12 MiB of it on 2 MiB pages",
            "CPU 3                        0/0 frames free (2 MiB reserved)",
            "not pinned, should be CPU 3  0/0 frames free",
            "not pinned                   0/0 frames free",
            "4.5 MiB, 4 MiB of it on 2 MiB pages",
        ] {
            assert!(text.contains(words), "{words}:\n{text}");
        }
    }
}
