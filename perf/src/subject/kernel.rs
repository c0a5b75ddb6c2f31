//! The Linux kernel's vxlan device, programmed as Felix does it, alone and with
//! the firewall that pods would have: connection tracking and rules.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, ensure};
use tieline_lab::{KernelVxlan, VxlanPeer};

use crate::bed::{Bed, PATIENCE, POD_MTU, POD_MTU_V6};
use crate::flows::{self, LOCAL_TUNNEL, REMOTE_TUNNEL, ROUTER_UNDERLAY, SINK_UNDERLAY};

use super::{Entry, Missing, Needs, Running, Subject};

/// The kernel as a router.
pub(crate) struct Kernel {
    /// Rules behind connection tracking; `None`: no firewall at all.
    pub(crate) rules: Option<u32>,
    /// Pods of the remote node that are known beside those that take part.
    pub(crate) endpoints: u32,
    /// CPUs that its packets are spread over.
    pub(crate) cpus: u32,
}

impl Kernel {
    /// Without more pods.
    pub(crate) const fn new(rules: Option<u32>) -> Self {
        Self { rules, endpoints: 0, cpus: 1 }
    }
}

impl Subject for Kernel {
    fn name(&self) -> String {
        match self.rules {
            None => "kernel".to_owned(),
            Some(rules) => format!("kernel+ct{rules}"),
        }
    }

    fn about(&self) -> String {
        match self.rules {
            None => "the kernel's vxlan device: routing, no firewall".to_owned(),
            Some(rules) => format!(
                "the same with nftables: established connections pass, others go through {rules} \
                 rules on ports, of which the last allows"
            ),
        }
    }

    fn cpus(&self) -> u32 {
        self.cpus
    }

    fn set_up<'a>(&self, bed: &'a Bed, needs: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        if self.rules.is_some() {
            let most = conntrack_max()?;
            if most < u64::from(needs.flows) + 1000 {
                let text = format!(
                    "{} flows need more than the {most} connections that this machine tracks; \
                     net.netfilter.nf_conntrack_max holds for the whole machine, so it is left \
                     alone",
                    needs.flows
                );
                return Err(Missing(text).into());
            }
        }
        // From here on it is removed, whatever fails.
        let up = Up { bed, rules: self.rules, endpoints: self.endpoints };
        let device = KernelVxlan {
            device: "vxlan.calico".to_owned(),
            vni: flows::VNI,
            port: flows::VXLAN_PORT,
            local: ROUTER_UNDERLAY.into(),
            mac: flows::mac_text(flows::LOCAL_VTEP),
            mtu: POD_MTU,
            addresses: vec![format!("{LOCAL_TUNNEL}/32")],
        };
        device.create(&bed.router)?;
        let peer = VxlanPeer {
            outer: SINK_UNDERLAY.into(),
            mac: flows::mac_text(flows::REMOTE_VTEP),
            tunnel: REMOTE_TUNNEL.into(),
            routes: vec![format!("{REMOTE_TUNNEL}/26")],
        };
        device.add_peer(&bed.router, &peer)?;
        if needs.v6 {
            add_v6(bed)?;
        }
        let block = |number: u32| {
            let base = flows::more_pod(64 * number);
            format!("route replace {base}/26 via {REMOTE_TUNNEL} dev vxlan.calico onlink")
        };
        if self.endpoints > 0 {
            bed.router.ip((0..self.endpoints.div_ceil(64)).map(block))?;
        }
        if let Some(rules) = self.rules {
            load_rules(bed, &ruleset(rules, self.endpoints))?;
        }
        Ok(Box::new(up))
    }
}

/// Calico's second device, for IPv6 over IPv6.
fn add_v6(bed: &Bed) -> anyhow::Result<()> {
    let device = KernelVxlan {
        device: "vxlan-v6.calico".to_owned(),
        vni: flows::VNI,
        port: flows::VXLAN_PORT,
        local: flows::ROUTER_UNDERLAY_V6.into(),
        mac: flows::mac_text(flows::LOCAL_VTEP_V6),
        mtu: POD_MTU_V6,
        addresses: vec![format!("{}/128", flows::LOCAL_TUNNEL_V6)],
    };
    device.create(&bed.router)?;
    let peer = VxlanPeer {
        outer: flows::SINK_UNDERLAY_V6.into(),
        mac: flows::mac_text(flows::REMOTE_VTEP_V6),
        tunnel: flows::REMOTE_TUNNEL_V6.into(),
        routes: vec![format!("{}/122", flows::REMOTE_TUNNEL_V6)],
    };
    Ok(device.add_peer(&bed.router, &peer)?)
}

struct Up<'a> {
    bed: &'a Bed,
    rules: Option<u32>,
    endpoints: u32,
}

impl Running for Up<'_> {
    fn entry(&self) -> Entry {
        Entry { netns: self.bed.generator.clone(), device: "g0".to_owned(), mac: flows::D0 }
    }

    fn change(&self, number: u32) -> anyhow::Result<()> {
        let Some(rules) = self.rules else {
            return Err(Missing("there are no rules to change".to_owned()).into());
        };
        // In one transaction, as a CNI plugin does it.
        let replace = "table inet perf\ndelete table inet perf\n";
        let rules = ruleset(rules + number % 2, self.endpoints);
        load_rules(self.bed, &(replace.to_owned() + &rules))
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        // Fails where setting up has failed, or the bed is gone already.
        let _ = self.bed.router.ip(["link del vxlan.calico"]);
        let _ = self.bed.router.ip(["link del vxlan-v6.calico"]);
        if self.rules.is_some() {
            let _ = load_rules(self.bed, "flush ruleset\n");
        }
    }
}

/// Connections that the machine tracks at most.
fn conntrack_max() -> anyhow::Result<u64> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_max";
    let text = std::fs::read_to_string(path)
        .map_err(|error| Missing(format!("the kernel tracks no connections: {path}: {error}")))?;
    text.trim().parse().with_context(|| path.to_owned())
}

/// Rules as a CNI plugin's: one chain for the node's pods. Every rule but the
/// last is about ports that the flows don't use; that one is about a set of
/// addresses, if more are known than take part.
fn ruleset(rules: u32, endpoints: u32) -> String {
    let mut text = "table inet perf {\n".to_owned();
    if endpoints > 0 {
        let more = (0..endpoints).map(flows::more_pod);
        let all: Vec<String> = flows::pods()
            .map(flows::remote_pod)
            .chain(more)
            .map(|address| address.to_string())
            .collect();
        let elements = all.join(", ");
        // Writing to a string never fails.
        let _ = writeln!(text, " set remote {{ type ipv4_addr; elements = {{ {elements} }}; }}");
    }
    text.push_str(
        " chain forward {\n  type filter hook forward priority 0; \
                    policy accept;\n  ct state established,related accept\n  ct state invalid \
                    drop\n  ip saddr 10.244.1.0/26 jump pods\n  ip6 saddr fd00:244:1::/122 \
                    jump pods\n }\n chain pods {\n",
    );
    for rule in 1..rules {
        let verdict = if rule % 2 == 0 { "accept" } else { "drop" };
        // Writing to a string never fails.
        let _ = writeln!(text, "  udp dport {} {verdict}", 2000 + 3 * rule);
    }
    let allowed = flows::PORT;
    let to = if endpoints > 0 { "ip daddr @remote " } else { "" };
    if rules > 0 {
        let _ = writeln!(
            text,
            "  {to}udp dport {allowed} accept\n  tcp dport 1-65535 accept\n  \
                                meta l4proto icmp accept\n  drop"
        );
    }
    text.push_str(" }\n}\n");
    text
}

fn load_rules(bed: &Bed, text: &str) -> anyhow::Result<()> {
    let path = bed.lab.dir().join("rules.nft");
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    let mut command = Command::new("nft");
    command.arg("-f").arg(&path);
    let output = bed.router.output("nft", command, PATIENCE).map_err(|error| {
        Missing(format!("nft does not start: {error}; install it: apt-get install nftables"))
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft -f {}: {}", path.display(), said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ruleset_has_as_many_rules_on_ports_as_asked() {
        for rules in [0, 1, 100] {
            let text = ruleset(rules, 0);
            assert_eq!(text.matches("udp dport").count(), rules as usize, "{text}");
        }
        let text = ruleset(2, 3);
        assert!(text.contains("10.64.0.2") && text.contains("daddr @remote udp dport 443"));
    }
}
