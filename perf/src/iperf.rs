//! iperf3, where it is installed: another's bulk transfer beside our own.

use std::net::IpAddr;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tieline_lab::Netns;

use crate::bed::PATIENCE;

const PORT: &str = "5201";
/// Length of a transfer: iperf3 counts whole seconds.
const SECONDS: &str = "1";

/// Whether there is such a program.
pub(crate) fn is_installed() -> bool {
    static FOUND: LazyLock<bool> =
        LazyLock::new(|| Command::new("iperf3").arg("--version").output().is_ok());
    *FOUND
}

/// Bits per second that arrive of some transfers over one TCP connection each.
///
/// # Errors
/// iperf3's.
pub(crate) fn transfers(
    from: &Netns,
    to: &Netns,
    address: IpAddr,
    runs: usize,
) -> anyhow::Result<Vec<f64>> {
    let mut server = Command::new("iperf3");
    server.args(["--server", "--port", PORT, "--bind"]).arg(address.to_string());
    // Ends with the handle.
    let server = to.spawn("iperf3-server", server)?;
    let client = || {
        let mut client = Command::new("iperf3");
        client.args(["--json", "--port", PORT, "--time", SECONDS, "--interval", "0", "--client"]);
        client.arg(address.to_string());
        let output = from.output("iperf3", client, PATIENCE)?;
        received(&output.stdout)
    };
    // The server takes a moment to listen, and another to be done with a test.
    let patient = || {
        let started = Instant::now();
        loop {
            match client() {
                Err(error) if started.elapsed() > Duration::from_secs(5) => {
                    return Err(error.context(server.transcript()));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
                rate => return rate,
            }
        }
    };
    (0..runs).map(|_| patient()).collect()
}

fn received(output: &[u8]) -> anyhow::Result<f64> {
    let report: serde_json::Value = serde_json::from_slice(output).context("iperf3's report")?;
    let error = report["error"].as_str();
    ensure!(error.is_none(), "iperf3: {}", error.unwrap_or_default());
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.context("iperf3 does not say what was received")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_a_rate_or_an_error() {
        let report = br#"{"end": {"sum_received": {"bits_per_second": 1.5e9}}}"#;
        assert_eq!(received(report).unwrap(), 1.5e9);
        let refused = received(br#"{"error": "unable to connect"}"#).unwrap_err();
        assert!(refused.to_string().contains("unable to connect"), "{refused}");
        assert!(received(b"{}").is_err() && received(b"").is_err());
    }
}
