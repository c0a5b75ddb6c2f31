//! The Linux kernel's vxlan device, programmed as Felix does it, alone and with
//! the firewall that pods would have: connection tracking and rules.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, ensure};
use tieline_lab::{KernelVxlan, VxlanPeer};

use crate::bed::{Bed, PATIENCE, POD_MTU};
use crate::flows::{self, LOCAL_TUNNEL, REMOTE_TUNNEL, ROUTER_UNDERLAY, SINK_UNDERLAY};

use super::{Entry, Missing, Needs, Running, Subject};

/// The kernel as a router.
pub(crate) struct Kernel {
    /// Rules behind connection tracking; `None`: no firewall at all.
    pub(crate) rules: Option<u32>,
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
        let up = Up { bed, firewall: self.rules.is_some() };
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
        if let Some(rules) = self.rules {
            load_rules(bed, &ruleset(rules))?;
        }
        Ok(Box::new(up))
    }
}

struct Up<'a> {
    bed: &'a Bed,
    firewall: bool,
}

impl Running for Up<'_> {
    fn entry(&self) -> Entry {
        Entry { netns: self.bed.generator.clone(), device: "g0".to_owned(), mac: flows::D0 }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        // Fails where setting up has failed, or the bed is gone already.
        let _ = self.bed.router.ip(["link del vxlan.calico"]);
        if self.firewall {
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
/// last is about ports that the flows don't use.
fn ruleset(rules: u32) -> String {
    let mut text = "table inet perf {\n chain forward {\n  type filter hook forward priority 0; \
                    policy accept;\n  ct state established,related accept\n  ct state invalid \
                    drop\n  ip saddr 10.244.1.0/26 jump pods\n }\n chain pods {\n"
        .to_owned();
    for rule in 1..rules {
        let verdict = if rule % 2 == 0 { "accept" } else { "drop" };
        // Writing to a string never fails.
        let _ = writeln!(text, "  udp dport {} {verdict}", 2000 + 3 * rule);
    }
    let allowed = flows::PORT;
    if rules > 0 {
        let _ = writeln!(
            text,
            "  udp dport {allowed} accept\n  tcp dport 1-65535 accept\n  \
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
            let text = ruleset(rules);
            assert_eq!(text.matches("udp dport").count(), rules as usize, "{text}");
        }
    }
}
