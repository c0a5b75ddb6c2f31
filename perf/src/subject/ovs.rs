//! Open vSwitch's userspace datapath with DPDK, a peer that anyone can install:
//! two bridges, a VXLAN tunnel, its poll thread on the router's CPU, `d0` and
//! `u0` by DPDK's AF_XDP driver. All of it runs from a folder of the bed, beside
//! an Open vSwitch that the machine may have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tieline_lab::{Process, Signal};

use crate::bed::{Bed, PATIENCE};
use crate::flows::{self, REMOTE_TUNNEL, ROUTER_UNDERLAY, SINK_UNDERLAY};

use super::{Entry, Missing, Needs, Running, Subject};

/// Where Debian has it.
const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const INSTALL: &str =
    "apt-get install openvswitch-switch-dpdk librte-net-af-xdp23 librte-mempool-ring23";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Pages of 2 MiB that it needs.
const PAGES: u64 = 1280;

/// Open vSwitch, with connection tracking or without.
pub(crate) struct Ovs {
    pub(crate) conntrack: bool,
}

impl Subject for Ovs {
    fn name(&self) -> String {
        if self.conntrack { "ovs-dpdk+ct" } else { "ovs-dpdk" }.to_owned()
    }

    fn about(&self) -> String {
        let policy = if self.conntrack {
            "conntrack: new connections to one port are committed, established ones pass"
        } else {
            "no policy"
        };
        format!("Open vSwitch's userspace datapath with DPDK's AF_XDP driver, VXLAN, {policy}")
    }

    fn set_up<'a>(&self, bed: &'a Bed, _: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        installed()?;
        let dir = bed.lab.dir().join("ovs");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let (database, socket) = (dir.join("conf.db"), dir.join("db.sock"));
        let tool = |line: &str| Tool { bed, dir: &dir, socket: &socket }.run(line);
        tool(&format!("ovsdb-tool create {} {SCHEMA}", database.display()))?;
        let mut command = command("ovsdb-server", &dir);
        command.arg(&database).arg(format!("--remote=punix:{}", socket.display()));
        let server = bed.router.spawn("ovsdb-server", command)?;
        wait_for(&socket)?;
        tool("ovs-vsctl --no-wait init")?;
        tool(
            "ovs-vsctl --no-wait set Open_vSwitch . other_config:dpdk-init=true \
             other_config:dpdk-extra=\"--no-pci -m 2048\"",
        )?;
        let mask = 1u64 << bed.cpus.router;
        tool(&format!(
            "ovs-vsctl --no-wait set Open_vSwitch . other_config:pmd-cpu-mask={mask:#x}"
        ))?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &format!("{},{}", bed.cpus.traffic, bed.cpus.router)]);
        command.arg(DAEMON).arg(format!("unix:{}", socket.display()));
        command.arg(format!("--unixctl={}", dir.join("switch.ctl").display()));
        let daemon = bed.router.spawn("ovs-vswitchd", surround(command, &dir))?;
        let up = Up { bed, dir: dir.clone(), _server: server, daemon };
        self.program(bed, &dir, &tool).with_context(|| up.transcript())?;
        Ok(Box::new(up))
    }
}

impl Ovs {
    fn program(
        &self,
        bed: &Bed,
        dir: &Path,
        tool: &dyn Fn(&str) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        // The address moves to the bridge, as the manual for tunnels in user
        // space says (Documentation/howto/userspace-tunneling.rst).
        bed.router.ip([format!("address del {ROUTER_UNDERLAY}/24 dev u0")])?;
        tool("ovs-vsctl add-br under -- set bridge under datapath_type=netdev")?;
        tool("ovs-vsctl add-br pods -- set bridge pods datapath_type=netdev")?;
        for (bridge, device) in [("pods", "d0"), ("under", "u0")] {
            tool(&format!(
                "ovs-vsctl add-port {bridge} {device}-dpdk -- set Interface {device}-dpdk type=dpdk \
                 options:dpdk-devargs=net_af_xdp_{device},iface={device},force_copy=1"
            ))?;
        }
        tool(&format!(
            "ovs-vsctl add-port pods vxlan0 -- set Interface vxlan0 type=vxlan \
             options:remote_ip={SINK_UNDERLAY} options:key={} options:dst_port={}",
            flows::VNI,
            flows::VXLAN_PORT
        ))?;
        let mac = flows::mac_text;
        bed.router.ip([
            format!("link set under address {} up", mac(flows::U0)),
            format!("address add {ROUTER_UNDERLAY}/24 dev under"),
            format!(
                "neighbor replace {SINK_UNDERLAY} lladdr {} dev under nud permanent",
                mac(flows::S0)
            ),
        ])?;
        let control = dir.join("switch.ctl");
        tool(&format!(
            "ovs-appctl -t {} tnl/neigh/set under {SINK_UNDERLAY} {}",
            control.display(),
            mac(flows::S0)
        ))?;
        let send = format!(
            "mod_dl_src:{},mod_dl_dst:{},dec_ttl,output:vxlan0",
            mac(flows::LOCAL_VTEP),
            mac(flows::REMOTE_VTEP)
        );
        let to = format!("in_port=d0-dpdk,ip,nw_dst={REMOTE_TUNNEL}/26");
        let lines = if self.conntrack {
            let port = flows::PORT;
            vec![
                format!("table=0,{to},actions=ct(table=1)"),
                format!("table=1,ct_state=+trk+est,ip,actions={send}"),
                format!("table=1,ct_state=+trk+new,udp,tp_dst={port},actions=ct(commit),{send}"),
            ]
        } else {
            vec![format!("table=0,{to},actions={send}")]
        };
        let rules = dir.join("flows");
        std::fs::write(&rules, lines.join("\n") + "\n").context("write the flows")?;
        tool("ovs-ofctl del-flows pods")?;
        tool(&format!("ovs-ofctl add-flows pods {}", rules.display()))?;
        let failed = tool("ovs-vsctl --columns=name,error find Interface error!=[]")?;
        ensure!(failed.trim().is_empty(), "ports could not be opened: {}", failed.trim());
        Ok(())
    }
}

/// Whether all of it is here.
fn installed() -> Result<(), Missing> {
    if !Path::new(DAEMON).is_file() || !Path::new(SCHEMA).is_file() {
        return Err(Missing(format!("not installed: {INSTALL}")));
    }
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    let free: u64 = free.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if free < PAGES {
        return Err(Missing(format!(
            "it needs {PAGES} free huge pages of 2 MiB and there are {free}: sysctl \
             vm.nr_hugepages={PAGES}"
        )));
    }
    Ok(())
}

fn wait_for(path: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    while !path.exists() {
        ensure!(start.elapsed() < PATIENCE, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A command with the bed's folders in the place of the machine's.
fn command(program: &str, dir: &Path) -> Command {
    surround(Command::new(program), dir)
}

fn surround(mut command: Command, dir: &Path) -> Command {
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
        command.env(name, dir);
    }
    command
}

struct Tool<'a> {
    bed: &'a Bed,
    dir: &'a Path,
    socket: &'a PathBuf,
}

impl Tool<'_> {
    /// Runs one of its tools; quotes are the shell's.
    fn run(&self, line: &str) -> anyhow::Result<String> {
        let mut shell = command("sh", self.dir);
        let database = format!("unix:{}", self.socket.display());
        let line =
            line.replacen("ovs-vsctl", &format!("ovs-vsctl --timeout=20 --db={database}"), 1);
        shell.args(["-c", &line]);
        let output = self.bed.router.output("ovs-tool", shell, PATIENCE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}`: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

struct Up<'a> {
    bed: &'a Bed,
    dir: PathBuf,
    _server: Process,
    daemon: Process,
}

impl Up<'_> {
    /// Asks the daemon itself.
    fn ask(&self, what: &str) -> anyhow::Result<String> {
        let socket = self.dir.join("db.sock");
        let tool = Tool { bed: self.bed, dir: &self.dir, socket: &socket };
        tool.run(&format!("ovs-appctl -t {} {what}", self.dir.join("switch.ctl").display()))
    }
}

/// Cycles per packet of the first poll thread, those not among them in which it
/// polled for nothing.
fn per_packet(stats: &str) -> Option<f64> {
    let lines = stats.lines().map(str::trim);
    let mut thread = lines.skip_while(|line| !line.starts_with("pmd thread "));
    let found = thread.find_map(|line| line.strip_prefix("avg processing cycles per packet:"))?;
    found.split_whitespace().next()?.parse().ok()
}

impl Running for Up<'_> {
    fn entry(&self) -> Entry {
        Entry { netns: self.bed.generator.clone(), device: "g0".to_owned(), mac: flows::D0 }
    }

    fn pid(&self) -> Option<u32> {
        Some(self.daemon.pid())
    }

    fn count_cycles(&self) -> anyhow::Result<()> {
        self.ask("dpif-netdev/pmd-stats-clear").map(drop)
    }

    fn cycles(&self) -> anyhow::Result<Option<f64>> {
        let text = self.ask("dpif-netdev/pmd-stats-show")?;
        let cycles = per_packet(&text).with_context(|| format!("no cycles in: {text}"))?;
        Ok(Some(cycles))
    }

    fn transcript(&self) -> String {
        let text = self.daemon.transcript();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join(" | ")
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.signal(Signal::Term);
        let _ = self.daemon.wait(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_those_of_the_poll_thread() {
        let text = "pmd thread numa_id 0 core_id 1:\n  packets received: 100\n  \
                    packet recirculations: 100\n  avg cycles per packet: 2500.00 (250000/100)\n  \
                    avg processing cycles per packet: 1200.50 (120050/100)\nmain thread:\n  \
                    packets received: 0\n";
        assert_eq!(per_packet(text), Some(1200.5));
        let (_, main) = text.split_once("main").unwrap();
        assert_eq!((per_packet(main), per_packet("")), (None, None));
    }
}
