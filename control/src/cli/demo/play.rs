//! Plays the story: does what the script says, asks the daemons, makes the
//! connections, and notes what came of it.
//!
//! A fault of the machinery is an error and ends the play; an expectation that
//! does not hold is a line of the account, and the play goes on.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tieline_lab::{Lab, Outcome, Stream, UdpServer, bulk, connect, udp_blast};

use super::Stage;
use super::account::{
    Decision, Fact, Line, Tried, Verdict, identity, policies_in_words, who_is_there,
};
use super::clusters::{Clusters, Daemon, PATIENCE};
use super::script::{Act, CLUSTERS, Connection, Expect, PORTS, UDP_PORT, pod_name};
use crate::admin::status::Status;

/// How long a connection that must work may take, and one that must not is
/// given to work all the same.
const MUST: Duration = Duration::from_secs(3);
const MUST_NOT: Duration = Duration::from_millis(500);
/// Pace of the running connection's heartbeats: how exactly a cut is seen.
const BEAT: Duration = Duration::from_millis(1);
/// Silence that counts as a cut. Above TCP's shortest retransmission timeout,
/// so that a single lost packet is none.
const QUIET: Duration = Duration::from_millis(500);
/// Duration of each measurement.
const MEASURE: Duration = Duration::from_secs(3);
/// UDP payload that makes the smallest inner Ethernet frame, 64 bytes with its
/// checksum.
const SMALL_PAYLOAD: usize = 18;

/// A play in progress.
pub(super) struct Play<'a> {
    lab: &'a Lab,
    mode: &'a str,
    /// Nothing before [`Act::StandUp`].
    clusters: Option<Clusters>,
    /// Whether the kernel's own vxlan devices carry the traffic within each
    /// cluster.
    kernel_vxlan: bool,
}

impl<'a> Play<'a> {
    /// A play in an empty lab.
    pub(super) fn new(lab: &'a Lab, mode: &'a str) -> Self {
        Self { lab, mode, clusters: None, kernel_vxlan: false }
    }

    /// What is up, once it is.
    pub(super) fn clusters(&self) -> anyhow::Result<&Clusters> {
        self.clusters.as_ref().context("the clusters are not up yet")
    }

    fn stand_up(&mut self) -> anyhow::Result<Vec<Fact>> {
        let begun = Instant::now();
        let clusters = self.clusters.insert(Clusters::stand_up(self.lab, self.mode)?);
        let wired = begun.elapsed();
        let ready = |daemon: &Daemon, status: &Status| {
            status.ready && status.node == daemon.node && !status.underlay.is_empty()
        };
        let (statuses, ready) = clusters.await_status("readiness", begun, ready)?;
        let ports = ports(statuses.values());
        // A packet socket gets a copy of each frame, the kernel gets it too: a
        // vxlan device of its own would deliver what policy denies.
        self.kernel_vxlan = !ports.contains("packet");
        if self.kernel_vxlan {
            clusters.add_kernel_vxlan()?;
        }
        let mut facts = who_is_there();
        facts.push(Fact::new(
            true,
            "net  app-1 and db-1 each behind the router; app-2 and db-2 on one segment; \
             IPv4 and IPv6",
        ));
        facts.push(
            Fact::new(
                true,
                format!(
                    "{} daemons ready {} ms after the first namespace; port: {ports}",
                    statuses.len(),
                    ready.as_millis()
                ),
            )
            .figure("wired_milliseconds", millis(wired))
            .figure("ready_milliseconds", millis(ready))
            .figure("port", ports),
        );
        Ok(facts)
    }

    fn join(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        let begun = Instant::now();
        for plan in &CLUSTERS {
            clusters.cluster(plan.name)?.1.write_remote(plan.remote, true)?;
        }
        let joined = |daemon: &Daemon, status: &Status| {
            let remote = remote(daemon, status);
            remote.is_some_and(|remote| remote["state"] == "InSync" && remote["overlay"] == true)
                && status.vteps.len() == 4
                && status.vteps.iter().all(|vtep| vtep.resolved)
                && status.gateway.as_ref().is_some_and(|gateway| gateway.routes > 0)
        };
        let (statuses, took) = clusters.await_status("joining", begun, joined)?;
        let routes: usize =
            statuses.values().filter_map(|s| Some(s.gateway.as_ref()?.routes)).sum();
        let text = format!(
            "RCC db into app, RCC app into db: {routes} routes and the identities of the other \
             side on {} nodes after {} ms",
            statuses.len(),
            took.as_millis()
        );
        let mut facts = vec![Fact::new(true, text).figure("milliseconds", millis(took))];
        facts.push(self.identity_known(true)?);
        Ok(facts)
    }

    /// Whether app's daemon knows who postgres' address is.
    fn identity_known(&self, expected: bool) -> anyhow::Result<Fact> {
        let clusters = self.clusters()?;
        let daemon = clusters.daemon_of("backend")?;
        let address = clusters.pod("postgres")?.v4;
        let answer = clusters.explain(daemon, &pod_name("backend"), &address.to_string(), 5432)?;
        Ok(identity(&daemon.node, address, &answer, expected))
    }

    /// Makes a connection between two nodes of one cluster.
    fn beside(&self) -> anyhow::Result<Vec<Fact>> {
        if !self.kernel_vxlan {
            let text = "within a cluster: nothing here, for packet sockets leave every frame to \
                        the kernel's vxlan devices as well";
            return Ok(vec![Fact::new(true, text)]);
        }
        let clusters = self.clusters()?;
        let (from, to) = (clusters.pod("backend")?, clusters.pod("report")?);
        let mut ok = true;
        for address in to.addresses() {
            let outcome = connect(&from.netns, SocketAddr::new(address, PORTS[0]), MUST)?;
            ok &= outcome == Outcome::Connected;
        }
        let what = if ok { "goes on" } else { "does not work" };
        let text = format!(
            "within app: backend -> report {what} over the kernel's own vxlan device on the same \
             port"
        );
        Ok(vec![Fact::new(ok, text)])
    }

    fn apply_policies(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        for plan in &CLUSTERS {
            clusters.cluster(plan.name)?.1.write_policies(plan.name)?;
        }
        Ok(policies_in_words())
    }

    fn relabel(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        let from = &clusters.pod("backend")?.netns;
        let to = SocketAddr::new(clusters.pod("postgres")?.v4.into(), 5432);
        let stream = Stream::start(from, to, BEAT, MUST)?;
        stream.wait_answers(50, PATIENCE)?;
        let (_, manifests) = clusters.cluster("db")?;
        let written = manifests.write_pod("postgres", "postgres-canary")?;
        let cut = match stream.wait_stall(QUIET, PATIENCE) {
            Ok(stall) => stall.last_answer.max(stall.first_unanswered),
            Err(error) => return Ok(vec![Fact::new(false, format!("not cut: {error}"))]),
        };
        let took = cut.saturating_duration_since(written);
        let text = format!(
            "the running connection backend -> postgres is cut {:.1} ms after the file was written",
            took.as_secs_f64() * 1e3
        );
        Ok(vec![
            Fact::new(true, "postgres: app=postgres becomes app=postgres-canary"),
            Fact::new(true, text).figure("cut_milliseconds", took.as_secs_f64() * 1e3),
        ])
    }

    fn label_back(&self) -> anyhow::Result<Vec<Fact>> {
        self.clusters()?.cluster("db")?.1.write_pod("postgres", "postgres")?;
        Ok(vec![Fact::new(true, "postgres: app=postgres again")])
    }

    fn overlay_off(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        let begun = Instant::now();
        clusters.cluster("app")?.1.write_remote("db", false)?;
        let off = |daemon: &Daemon, status: &Status| {
            let routes = status.gateway.as_ref().map_or(0, |gateway| gateway.routes);
            (routes == 0) == (daemon.cluster == "app")
        };
        let (_, took) = clusters.await_status("the routes' leaving", begun, off)?;
        let mut facts = vec![Fact::new(
            true,
            format!(
                "app: overlayRoutingMode: Disabled; its routes are gone after {} ms, db's stay",
                took.as_millis()
            ),
        )];
        facts.push(self.kernel_routes_gone(|daemon| daemon.cluster == "app")?);
        facts.push(self.identity_known(true)?);
        Ok(facts)
    }

    fn leave(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        let begun = Instant::now();
        for plan in &CLUSTERS {
            clusters.cluster(plan.name)?.1.remove_remote(plan.remote)?;
        }
        let gone = |daemon: &Daemon, status: &Status| {
            remote(daemon, status).is_none()
                && status.vteps.is_empty()
                && status.gateway.as_ref().is_none_or(|gateway| gateway.routes == 0)
        };
        let (_, took) = clusters.await_status("withdrawal", begun, gone)?;
        let text = format!(
            "both RCCs are deleted; nothing of the other side after {} ms",
            took.as_millis()
        );
        let mut facts = vec![Fact::new(true, text)];
        facts.push(self.kernel_routes_gone(|_| true)?);
        facts.push(self.identity_known(false)?);
        Ok(facts)
    }

    /// Whether the kernel itself has no routes of ours where they are said to be
    /// gone, and some elsewhere.
    fn kernel_routes_gone(&self, gone: impl Fn(&Daemon) -> bool) -> anyhow::Result<Fact> {
        let (mut without, mut wrong) = (Vec::new(), Vec::new());
        for daemon in self.clusters()?.daemons() {
            let routes = daemon.kernel_routes()?;
            if (routes == 0) != gone(daemon) {
                wrong.push(format!("{} has {routes}", daemon.node));
            } else if routes == 0 {
                without.push(daemon.node.as_str());
            }
        }
        if wrong.is_empty() {
            let text = format!("no route of ours in the kernel of {}", without.join(", "));
            return Ok(Fact::new(true, text));
        }
        Ok(Fact::new(false, format!("routes of ours in the kernel: {}", wrong.join(", "))))
    }

    fn bulk(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        let to = SocketAddr::new(clusters.pod("postgres")?.v4.into(), 5432);
        let run = bulk(&clusters.pod("backend")?.netns, to, MEASURE)?;
        let port = self.port_between("backend", "postgres")?;
        let text = format!(
            "bulk      backend -> postgres  one TCP connection  {:.2} Gbit/s  ({} MB in {:.1} s)  \
             {port}",
            run.bits_per_second() / 1e9,
            run.bytes / 1_000_000,
            run.elapsed.as_secs_f64()
        );
        Ok(vec![
            Fact::new(run.bytes > 0, text)
                .figure("bits_per_second", run.bits_per_second())
                .figure("bytes", run.bytes)
                .figure("seconds", run.elapsed.as_secs_f64())
                .figure("port", port),
        ])
    }

    fn small_packets(&self) -> anyhow::Result<Vec<Fact>> {
        let clusters = self.clusters()?;
        let metrics = clusters.pod("metrics")?;
        let server = UdpServer::start(&metrics.netns, UDP_PORT)?;
        let to = SocketAddr::new(metrics.v4.into(), UDP_PORT);
        let from = &clusters.pod("frontend")?.netns;
        let run = udp_blast(from, to, &server, SMALL_PAYLOAD, None, MEASURE)?;
        let port = self.port_between("frontend", "metrics")?;
        let text = format!(
            "64 bytes  frontend -> metrics  one UDP sender      {:.0} k packets/s received of \
             {:.0} k sent  {port}",
            run.received_pps() / 1e3,
            run.sent as f64 / run.elapsed.as_secs_f64() / 1e3
        );
        Ok(vec![
            Fact::new(run.received > 0, text)
                .figure("received_packets_per_second", run.received_pps())
                .figure("sent", run.sent)
                .figure("received", run.received)
                .figure("port", port),
        ])
    }

    fn stop(&self) -> anyhow::Result<Vec<Fact>> {
        let faults = self.clusters()?.stop()?;
        if faults.is_empty() {
            let text = "no device, route or XDP program of ours is left on any node";
            return Ok(vec![Fact::new(true, text)]);
        }
        Ok(faults.into_iter().map(|fault| Fact::new(false, fault)).collect())
    }

    /// The port modes of the two daemons between two pods.
    fn port_between(&self, from: &str, to: &str) -> anyhow::Result<String> {
        let clusters = self.clusters()?;
        let both = [clusters.daemon_of(from)?, clusters.daemon_of(to)?];
        let statuses = both.map(|daemon| clusters.status(daemon));
        Ok(ports(statuses.iter().flatten()))
    }
}

impl Stage for Play<'_> {
    fn act(&mut self, act: Act) -> anyhow::Result<Vec<Fact>> {
        match act {
            Act::StandUp => self.stand_up(),
            Act::Join => self.join(),
            Act::Beside => self.beside(),
            Act::ApplyPolicies => self.apply_policies(),
            Act::Relabel => self.relabel(),
            Act::LabelBack => self.label_back(),
            Act::OverlayOff => self.overlay_off(),
            Act::Leave => self.leave(),
            Act::Bulk => self.bulk(),
            Act::SmallPackets => self.small_packets(),
            Act::Stop => self.stop(),
        }
    }

    /// Asks about connections and makes them, all at once, each in both
    /// families.
    fn try_all(&mut self, connections: &[Connection]) -> anyhow::Result<Vec<Line>> {
        let clusters = self.clusters()?;
        let both = |connection| [(connection, false), (connection, true)];
        let wanted: Vec<_> = connections.iter().flat_map(both).collect();
        thread::scope(|scope| {
            let attempt = |(connection, v6)| scope.spawn(move || attempt(clusters, connection, v6));
            let threads: Vec<_> = wanted.into_iter().map(attempt).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).map(|tried| Ok(Line::Connection(tried?))).collect()
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the daemon says of its remote cluster.
fn remote<'s>(daemon: &Daemon, status: &'s Status) -> Option<&'s serde_json::Value> {
    let plan = CLUSTERS.iter().find(|plan| plan.name == daemon.cluster)?;
    status.clusters["remotes"].get(plan.remote)
}

/// How frames are exchanged, as the daemons say it.
fn ports<'s>(statuses: impl IntoIterator<Item = &'s Status>) -> String {
    let mut modes: Vec<&str> = statuses
        .into_iter()
        .flat_map(|status| &status.underlay)
        .map(|device| device.mode.as_str())
        .collect();
    modes.sort_unstable();
    modes.dedup();
    modes.join(" and ")
}

/// One connection in one family: first what the daemons say, then what the
/// sockets do. The daemons are asked again until they say what is expected, for
/// a while: a change takes its time to arrive.
fn attempt(clusters: &Clusters, connection: &Connection, v6: bool) -> anyhow::Result<Tried> {
    let (from, to) = (clusters.pod(connection.from)?, clusters.pod(connection.to)?);
    let addresses = |pod: &tieline_lab::Pod| -> IpAddr { pod.addresses()[usize::from(v6)] };
    let begun = Instant::now();
    let (verdict, decisions, said_so) = loop {
        let (verdict, decisions) = judge(clusters, connection, addresses(from), addresses(to))?;
        let said_so = verdict == connection.expect.into()
            && connection.deciders.iter().all(|who| decisions.iter().any(|said| said.is(who)));
        if said_so || begun.elapsed() > PATIENCE / 2 {
            break (verdict, decisions, said_so);
        }
        thread::sleep(Duration::from_millis(20));
    };
    let allowed = connection.expect == Expect::Allow;
    let within = if allowed { MUST } else { MUST_NOT };
    let target = SocketAddr::new(addresses(to), connection.port);
    let outcome = connect(&from.netns, target, within)?;
    let connected = outcome == Outcome::Connected;
    Ok(Tried {
        from: connection.from.to_owned(),
        to: connection.to.to_owned(),
        port: connection.port,
        family: if v6 { "ipv6" } else { "ipv4" },
        expected: connection.expect.into(),
        expected_deciders: connection.deciders.iter().map(ToString::to_string).collect(),
        verdict,
        socket: words(&outcome),
        connected,
        decisions,
        ok: said_so && connected == allowed,
    })
}

/// Outcomes without the operating system's numbers.
fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Unreachable(_) => "unreachable".to_owned(),
        other => other.to_string(),
    }
}

/// Asks the daemon of each end for its own side.
fn judge(
    clusters: &Clusters,
    connection: &Connection,
    from: IpAddr,
    to: IpAddr,
) -> anyhow::Result<(Verdict, Vec<Decision>)> {
    let (source, target) =
        (clusters.daemon_of(connection.from)?, clusters.daemon_of(connection.to)?);
    let (from_pod, to_pod) = (pod_name(connection.from), pod_name(connection.to));
    let leaving = clusters.explain(source, &from_pod, &to.to_string(), connection.port)?;
    let arriving = clusters.explain(target, &from.to_string(), &to_pod, connection.port)?;
    Ok(Verdict::of((&source.node, &leaving), (&target.node, &arriving)))
}
