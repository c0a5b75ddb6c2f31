//! VPP with its af_xdp plugin, where it is installed: the command line builds
//! the same path as the kernel's vxlan device, a stateful ACL on the pods' side.
//!
//! Written for VPP 26.10 from its command reference, and not yet run: its packages
//! come from FD.io only. What it gets wrong shows as a line under "not measured".

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tieline_lab::{Process, Signal};

use crate::bed::{Bed, PATIENCE};
use crate::flows::{self, REMOTE_TUNNEL, ROUTER_UNDERLAY, SINK_UNDERLAY};

use super::{Entry, Missing, Needs, Running, Subject};

const INSTALL: &str = "no vpp in /usr/bin: install vpp, vpp-plugin-core and vpp-plugin-dpdk from \
                       FD.io's packages, as its documentation says; Debian has none";

/// VPP.
pub(crate) struct Vpp;

impl Subject for Vpp {
    fn name(&self) -> String {
        "vpp".to_owned()
    }

    fn about(&self) -> String {
        "VPP, af_xdp plugin in copy mode, one worker, VXLAN, a stateful ACL".to_owned()
    }

    fn set_up<'a>(&self, bed: &'a Bed, _: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        if !Path::new("/usr/bin/vpp").is_file() || !Path::new("/usr/bin/vppctl").is_file() {
            return Err(Missing(INSTALL.to_owned()).into());
        }
        let dir = bed.lab.dir().join("vpp");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let socket = dir.join("cli.sock");
        let (script, start) = (dir.join("script"), dir.join("start.conf"));
        std::fs::write(&script, commands()).context("write VPP's commands")?;
        let text = format!(
            "unix {{ nodaemon cli-listen {} runtime-dir {} startup-config {} }}\ncpu {{ main-core \
             {} corelist-workers {} }}\nplugins {{ plugin dpdk_plugin.so {{ disable }} }}\n",
            socket.display(),
            dir.display(),
            script.display(),
            bed.cpus.traffic,
            bed.cpus.router
        );
        std::fs::write(&start, text).context("write VPP's configuration")?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &format!("{},{}", bed.cpus.traffic, bed.cpus.router)]);
        command.args(["/usr/bin/vpp", "-c"]).arg(&start);
        let up = Up { bed, process: bed.router.spawn("vpp", command)? };
        let began = Instant::now();
        while !up.shows_tunnel(&socket) {
            ensure!(began.elapsed() < PATIENCE, "VPP does not come up: {}", up.transcript());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Box::new(up))
    }
}

/// What builds the path: the tunnel's interface routes, with the far VTEP as its
/// static neighbor.
fn commands() -> String {
    let mac = flows::mac_text;
    let (near, far) = (flows::LOCAL_TUNNEL, REMOTE_TUNNEL);
    format!(
        "create interface af_xdp host-if d0 name pods num-rx-queues 1\n\
         create interface af_xdp host-if u0 name under num-rx-queues 1\n\
         set interface mac address pods {}\nset interface mac address under {}\n\
         set interface state pods up\nset interface state under up\n\
         set interface ip address pods 10.250.0.1/30\n\
         set interface ip address under {ROUTER_UNDERLAY}/24\n\
         set ip neighbor under {SINK_UNDERLAY} {}\n\
         create vxlan tunnel src {ROUTER_UNDERLAY} dst {SINK_UNDERLAY} vni {} l3\n\
         set interface state vxlan_tunnel0 up\n\
         set interface ip address vxlan_tunnel0 {near}/32\n\
         set ip neighbor vxlan_tunnel0 {far} {}\n\
         ip route add {far}/26 via {far} vxlan_tunnel0\n\
         ip route add {near}/26 via 10.250.0.2 pods\n\
         set acl-plugin acl permit+reflect proto 17 dport {}, permit+reflect proto 6, permit+reflect proto 1\n\
         set acl-plugin interface pods input acl 0\n",
        mac(flows::D0),
        mac(flows::U0),
        mac(flows::S0),
        flows::VNI,
        mac(flows::REMOTE_VTEP),
        flows::PORT
    )
}

struct Up<'a> {
    bed: &'a Bed,
    process: Process,
}

impl Up<'_> {
    fn shows_tunnel(&self, socket: &Path) -> bool {
        let mut command = Command::new("/usr/bin/vppctl");
        command.arg("-s").arg(socket).args(["show", "vxlan", "tunnel"]);
        let output = self.bed.router.output("vppctl", command, PATIENCE);
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("vni"))
    }
}

impl Running for Up<'_> {
    fn entry(&self) -> Entry {
        Entry { netns: self.bed.generator.clone(), device: "g0".to_owned(), mac: flows::D0 }
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.pid())
    }

    fn transcript(&self) -> String {
        self.process.transcript()
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let _ = self.process.signal(Signal::Term);
        let _ = self.process.wait(PATIENCE);
    }
}
