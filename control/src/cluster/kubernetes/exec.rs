//! Programs that print credentials: `exec` of a kubeconfig's user.
//!
//! They are run for each contact, and again before what they have printed
//! expires. No more is told of them than their name and what they say on
//! standard error: arguments, environment and output may hold secrets.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::jiff::Timestamp;
use kube::Config;
use kube::config::ExecConfig;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

/// The longest output that is read, in bytes: credentials are short.
const LONGEST: u64 = 1 << 20;
/// How much of what a program complains of is told, in characters.
const TOLD: usize = 300;
/// Credentials are had anew this long before they expire.
const BEFORE: Duration = Duration::from_secs(60);
/// They are not had anew sooner than this.
const SOONEST: Duration = Duration::from_secs(1);

/// Why there are no credentials, and the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("user.exec: {program} {reason}")]
pub(super) struct ExecError {
    program: String,
    reason: String,
}

/// Puts what the program prints in its place, if there is one. Says when to do
/// so again, too. The program may take `within`.
pub(super) async fn log_in(
    mut config: Config,
    within: Duration,
) -> Result<(Config, Option<Instant>), ExecError> {
    let user = &mut config.auth_info;
    // What is there goes before, as it does for kubectl.
    if user.token.is_some() || user.token_file.is_some() || user.username.is_some() {
        user.exec = None;
    }
    let Some(exec) = user.exec.take() else { return Ok((config, None)) };
    let program = exec.command.clone().unwrap_or_default();
    let failed = |reason| ExecError { program: program.clone(), reason };
    let output = run(&exec, within).await.map_err(failed)?;
    let status = read(&output).map_err(failed)?;
    let renewal = status.renewal(Timestamp::now()).map_err(failed)?;
    let base64 = |text: String| json!(ByteString(text.into_bytes())).as_str().map(str::to_owned);
    match (status.client_certificate_data, status.client_key_data, status.token) {
        (Some(certificate), Some(key), token) => {
            user.client_certificate_data = base64(certificate);
            user.client_key_data = base64(key).map(Into::into);
            user.token = token.map(Into::into);
        }
        (None, None, Some(token)) => user.token = Some(token.into()),
        (Some(_), None, _) | (None, Some(_), _) => {
            let reason = "prints only one of clientCertificateData and clientKeyData; correct it";
            return Err(failed(reason.to_owned()));
        }
        (None, None, None) => {
            let reason = "prints an ExecCredential without a token or a certificate; correct it";
            return Err(failed(reason.to_owned()));
        }
    }
    Ok((config, renewal.map(|after| Instant::now() + after)))
}

/// What counts of an `ExecCredential`.
#[derive(Deserialize)]
struct Credential {
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

impl Status {
    /// When other credentials are to be had, from now.
    fn renewal(&self, now: Timestamp) -> Result<Option<Duration>, String> {
        let Some(text) = &self.expiration_timestamp else { return Ok(None) };
        let expiry: Timestamp = text.trim().parse().map_err(|_| {
            "prints an expirationTimestamp that is no time of RFC 3339; correct it".to_owned()
        })?;
        let left = expiry.duration_since(now);
        let Ok(left) = Duration::try_from(left) else {
            return Err(format!(
                "prints credentials that have expired ({expiry}); have it get new ones, or \
                 correct this node's clock"
            ));
        };
        let renewal = if left > 2 * BEFORE { left - BEFORE } else { left / 2 };
        Ok(Some(renewal.max(SOONEST)))
    }
}

/// An error would repeat what it does not understand, which may be a token.
fn read(output: &[u8]) -> Result<Status, String> {
    let read: Option<Credential> = serde_saphyr::from_slice(output).ok();
    read.and_then(|credential| credential.status).ok_or_else(|| {
        format!(
            "prints {} bytes that are no ExecCredential with a status; run it by hand to see them",
            output.len()
        )
    })
}

/// Runs the program; what it has printed.
async fn run(exec: &ExecConfig, within: Duration) -> Result<Vec<u8>, String> {
    let mut command = Command::new(exec.command.as_deref().unwrap_or_default());
    command.args(exec.args.iter().flatten());
    for variable in exec.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let mut spec = json!({"interactive": false});
    if exec.provide_cluster_info {
        spec["cluster"] = json!(exec.cluster);
    }
    let info = json!({"kind": "ExecCredential", "apiVersion": exec.api_version, "spec": spec});
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What it starts itself ends with it.
    command.process_group(0);
    let child = command.spawn().map_err(|cause| {
        let hint = exec.install_hint.as_deref().map(str::trim).unwrap_or_default();
        let hint = if hint.is_empty() { String::new() } else { format!(" ({})", told(hint)) };
        format!(
            "can't be run: {cause}; install it where the daemon runs, or correct its path{hint}"
        )
    })?;
    let mut running = Running(child);
    let ended = timeout(within, running.ended()).await.map_err(|_| {
        format!("has not ended for {} s and is killed; run it by hand to see why", within.as_secs())
    })?;
    let (status, output, complaint) =
        ended.map_err(|cause| format!("can't be waited for: {cause}"))?;
    if !status.success() {
        let complaint = match told(&String::from_utf8_lossy(&complaint)) {
            said if said.is_empty() => "nothing on standard error".to_owned(),
            said => said,
        };
        return Err(format!("has failed ({status}) and says: {complaint}"));
    }
    if output.len() as u64 > LONGEST {
        return Err(format!("prints more than {LONGEST} bytes; correct it"));
    }
    Ok(output)
}

/// The end of a text, as part of a line.
fn told(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let skipped = line.chars().count().saturating_sub(TOLD);
    line.chars().skip(skipped).collect()
}

/// A program that is killed, with all that it has started, when nobody waits
/// for it any more.
struct Running(Child);

impl Running {
    async fn ended(&mut self) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let (output, complaint) = (self.0.stdout.take(), self.0.stderr.take());
        // What it has started may go on to print. Until then it is not waited for,
        // so that its group's id stays its own.
        let (output, complaint) = tokio::try_join!(all(output), all(complaint))?;
        Ok((self.0.wait().await?, output, complaint))
    }
}

/// All that comes; no more is kept than the longest that counts, and a byte.
async fn all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(LONGEST + 1).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

impl Drop for Running {
    fn drop(&mut self) {
        // Without an id it has ended, and the id may be another's by now.
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = id.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests;
