//! The daemon's state as OpenMetrics text.
//!
//! Made from a [`Status`] at each scrape: there is no second set of numbers
//! that could disagree with `tieline status`.

use std::fmt;

use hyper::header::HeaderValue;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tieline_dataplane::counters::Tally;
use tieline_dataplane::verdict::DropReason;

use super::status::{PortStatus, Status};

/// The content type of [`render`]'s text.
pub(super) const CONTENT_TYPE_VALUE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The text for one scrape.
pub fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("tieline");
    registry.register_collector(Box::new(View(status.clone())));
    let mut text = String::new();
    // Writing to a string never fails.
    let _ = encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct View(Status);

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = &self.0;
        packets(status, &mut encoder)?;
        ports(status, &mut encoder)?;
        cpus(status, &mut encoder)?;
        clusters(status, &mut encoder)?;
        let tables = &status.tables;
        for (name, help, value) in [
            ("ready", "whether tables are in force and every worker runs", i64::from(status.ready)),
            ("tables_generation", "generation of the tables in force", tables.generation as i64),
            ("routes", "prefixes with an owner", tables.routes as i64),
            ("vteps", "other ends of tunnels", tables.vteps as i64),
            ("vteps_unresolved", "tunnel ends whose next hop is not resolved", unresolved(status)),
            ("endpoints", "addresses with an identity", tables.endpoints as i64),
            ("policies", "policies of local endpoints", tables.policies as i64),
            ("flows", "live flows", tables.flows as i64),
            (
                "flow_capacity",
                "flows that the flow table has room for",
                tables.flow_capacity as i64,
            ),
            ("memory_bytes", "memory of the daemon", status.memory.resident_bytes as i64),
            (
                "memory_huge_bytes",
                "memory of the daemon on pages of 2 MiB",
                status.memory.huge_bytes as i64,
            ),
            (
                "config_rejected",
                "whether the config file's content is not in force",
                rejected(status),
            ),
            ("conditions_error", "conditions of severity error", severity(status, "error")),
            ("conditions_warning", "conditions of severity warning", severity(status, "warning")),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

fn unresolved(status: &Status) -> i64 {
    status.vteps.iter().filter(|vtep| !vtep.resolved).count() as i64
}

fn rejected(status: &Status) -> i64 {
    i64::from(status.config.error.is_some())
}

fn severity(status: &Status, severity: &str) -> i64 {
    status.conditions.iter().filter(|condition| condition.severity == severity).count() as i64
}

fn packets(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    for (name, help, _) in Tally::default().named() {
        let counter = ConstCounter::new(status.counters.get(name).copied().unwrap_or(0));
        counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
    }
    let help = "dropped packets by reason";
    let mut family =
        encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
    for reason in DropReason::ALL {
        let count = status.drops.get(reason.label()).copied().unwrap_or(0);
        counted(&mut family, &[("reason", reason.label())], count)?;
    }
    Ok(())
}

fn counted(family: &mut MetricEncoder, labels: &[(&str, &str)], count: u64) -> fmt::Result {
    ConstCounter::new(count).encode(family.encode_family(&labels)?)
}

type PortField = (&'static str, &'static str, fn(&PortStatus) -> u64);

const PORT_FIELDS: [PortField; 4] = [
    ("port_received_frames", "frames received", |port| port.received),
    ("port_sent_frames", "frames sent", |port| port.sent),
    ("port_receive_dropped_frames", "frames lost before they reached a worker", |port| {
        port.receive_dropped
    }),
    ("port_send_failed_frames", "frames that the device or kernel refused", |port| {
        port.send_failed
    }),
];

fn ports(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    for (name, help, value) in PORT_FIELDS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for worker in &status.workers {
            let number = worker.worker.to_string();
            let labels = |port| [("worker", number.as_str()), ("port", port)];
            counted(&mut family, &labels("underlay"), value(&worker.underlay_port))?;
            counted(&mut family, &labels("gateway"), value(&worker.gateway_port))?;
        }
    }
    Ok(())
}

/// Where workers are.
fn cpus(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let help = "whether a worker is pinned to the CPU that it should be on";
    let mut family = encoder.encode_descriptor("worker_pinned", help, None, MetricType::Gauge)?;
    for worker in &status.workers {
        let number = worker.worker.to_string();
        let pinned = worker.cpu.is_some() && worker.cpu == worker.cpu_wanted;
        let labels = [("worker", number.as_str())];
        ConstGauge::new(i64::from(pinned)).encode(family.encode_family(&&labels[..])?)?;
    }
    let help = "times that a worker was found to be pinned no more";
    let mut family =
        encoder.encode_descriptor("worker_pins_lost", help, None, MetricType::Counter)?;
    for worker in &status.workers {
        counted(&mut family, &[("worker", worker.worker.to_string().as_str())], worker.pins_lost)?;
    }
    Ok(())
}

/// One for each remote cluster and its present state.
fn clusters(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let help = "remote clusters, each with its state and whether its routes count";
    let mut family = encoder.encode_descriptor("remote_cluster", help, None, MetricType::Gauge)?;
    for (name, remote) in status.clusters["remotes"].as_object().into_iter().flatten() {
        let state = remote["state"].as_str().unwrap_or_default();
        let overlay = if remote["overlay"] == true { "true" } else { "false" };
        let labels = [("cluster", name.as_str()), ("state", state), ("overlay", overlay)];
        ConstGauge::new(1i64).encode(family.encode_family(&&labels[..])?)?;
    }
    let all = || {
        let remotes = status.clusters["remotes"].as_object().into_iter().flatten();
        let remotes = remotes.map(|(name, remote)| (name.as_str(), remote));
        std::iter::once(("local", &status.clusters["local"])).chain(remotes)
    };
    let help = "objects that are known of a cluster, by kind";
    let mut family = encoder.encode_descriptor("cluster_objects", help, None, MetricType::Gauge)?;
    for (name, cluster) in all() {
        for (kind, count) in cluster["objects"].as_object().into_iter().flatten() {
            let labels = [("cluster", name), ("kind", kind.as_str())];
            let count = count.as_i64().unwrap_or(0);
            ConstGauge::new(count).encode(family.encode_family(&&labels[..])?)?;
        }
    }
    let help = "times that contact with a cluster was lost";
    let mut family =
        encoder.encode_descriptor("cluster_contact_losses", help, None, MetricType::Counter)?;
    for (name, cluster) in all() {
        counted(
            &mut family,
            &[("cluster", name)],
            cluster["contact_losses"].as_u64().unwrap_or(0),
        )?;
    }
    let help = "time since a cluster last told of anything";
    let mut family = encoder.encode_descriptor(
        "cluster_last_event_age",
        help,
        Some(&Unit::Seconds),
        MetricType::Gauge,
    )?;
    for (name, cluster) in all() {
        if let Some(ms) = cluster["last_event_ms"].as_f64() {
            let labels = [("cluster", name)];
            ConstGauge::new(ms / 1000.0).encode(family.encode_family(&&labels[..])?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{MemoryStatus, WorkerStatus};

    #[test]
    fn where_workers_are_is_told() {
        let worker = |worker, cpu, cpu_wanted, pins_lost| WorkerStatus {
            worker,
            cpu,
            cpu_wanted,
            pins_lost,
            ..WorkerStatus::default()
        };
        let workers = vec![
            worker(0, Some(3), Some(3), 2),
            worker(1, Some(1), Some(4), 0),
            worker(2, None, Some(5), 0),
            worker(3, None, None, 0),
        ];
        let memory = MemoryStatus { resident_bytes: 7, huge_bytes: 5 };
        let text = render(&Status { workers, memory, ..Status::default() });
        for line in [
            "tieline_worker_pinned{worker=\"0\"} 1",
            "tieline_worker_pinned{worker=\"1\"} 0",
            "tieline_worker_pinned{worker=\"2\"} 0",
            "tieline_worker_pinned{worker=\"3\"} 0",
            "tieline_worker_pins_lost_total{worker=\"0\"} 2",
            "tieline_worker_pins_lost_total{worker=\"1\"} 0",
            "tieline_memory_bytes 7",
            "tieline_memory_huge_bytes 5",
        ] {
            assert!(text.lines().any(|told| told == line), "{line}:\n{text}");
        }
    }
}
