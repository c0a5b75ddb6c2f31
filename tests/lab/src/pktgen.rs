//! The kernel's packet generator, driven through `/proc/net/pktgen` (the
//! kernel's Documentation/networking/pktgen.rst).

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use crate::{Error, Netns, Result};

/// The generator's files of the calling thread's namespace.
const FOLDER: &str = "/proc/thread-self/net/pktgen";

/// What to send, out of which device.
#[derive(Clone, Debug)]
pub struct Pktgen {
    /// Device to send from.
    pub device: String,
    /// The CPU whose kernel thread sends.
    pub cpu: usize,
    /// Packets to send.
    pub packets: u64,
    /// Bytes of a frame, without its check sequence.
    pub size: usize,
    /// Packets per second; `None`: as fast as it goes.
    pub rate: Option<u64>,
    /// Ethernet destination, as `02:00:00:00:00:02`.
    pub mac: String,
    /// Source and destination address.
    pub addresses: (Ipv4Addr, Ipv4Addr),
    /// UDP source ports, from the first to the last.
    pub source_ports: (u16, u16),
    /// UDP destination port.
    pub port: u16,
}

/// What the generator reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Packets that the device took.
    pub sent: u64,
    /// Packets that it refused.
    pub errors: u64,
    /// Microseconds from the first to the last.
    pub microseconds: u64,
}

/// Why there is no generator here, in words for people; `None` when there is
/// one.
pub fn pktgen_missing() -> Option<String> {
    if fs::exists(FOLDER).unwrap_or(false) {
        return None;
    }
    Some(
        "the kernel's pktgen is not there: a kernel with CONFIG_NET_PKTGEN has it, and where it \
         is a module, `modprobe pktgen` loads it"
            .to_owned(),
    )
}

impl Pktgen {
    /// Sends from inside the namespace; returns when all are sent.
    ///
    /// # Errors
    /// There is no generator; it refuses a setting, which the error names; or it
    /// reports a failure.
    pub fn run(&self, netns: &Netns) -> Result<Generated> {
        netns.run(|| self.here())?
    }

    fn here(&self) -> Result<Generated> {
        if let Some(missing) = pktgen_missing() {
            return Err(failed("pktgen", io::Error::new(io::ErrorKind::NotFound, missing)));
        }
        let thread = format!("kpktgend_{}", self.cpu);
        tell(&thread, "rem_device_all")?;
        tell(&thread, &format!("add_device {}", self.device))?;
        let outcome = self.send();
        // The device is given back whatever happened.
        let removed = tell(&thread, "rem_device_all");
        let generated = outcome?;
        removed.map(|()| generated)
    }

    fn send(&self) -> Result<Generated> {
        for words in self.settings() {
            tell(&self.device, &words)?;
        }
        // Returns when all are sent.
        tell("pgctrl", "start")?;
        let doing = || format!("pktgen: result of {}", self.device);
        let text = fs::read_to_string(format!("{FOLDER}/{}", self.device));
        let text = text.map_err(Error::io(doing()))?;
        parse(&text).ok_or_else(|| failed(&doing(), io::Error::other(text.trim().to_owned())))
    }

    fn settings(&self) -> Vec<String> {
        let (source, destination) = self.addresses;
        let (first, last) = self.source_ports;
        let mut all = vec![
            format!("count {}", self.packets),
            // It counts the frame check sequence, which veth does not have.
            format!("pkt_size {}", self.size),
            match self.rate {
                Some(rate) => format!("ratep {rate}"),
                None => "delay 0".to_owned(),
            },
            format!("dst_mac {}", self.mac),
            format!("dst {destination}"),
            format!("src_min {source}"),
            format!("src_max {source}"),
            format!("udp_src_min {first}"),
            format!("udp_src_max {last}"),
            format!("udp_dst_min {0}", self.port),
            format!("udp_dst_max {0}", self.port),
        ];
        if first != last {
            all.push("flag UDPSRC_RND".to_owned());
        }
        all
    }
}

fn tell(file: &str, words: &str) -> Result<()> {
    fs::write(format!("{FOLDER}/{file}"), format!("{words}\n")).map_err(|error| {
        let why = match error.raw_os_error() {
            Some(19) => " (no such device in this namespace)",
            Some(22) => " (the value, or the setting, is unknown to this kernel)",
            Some(16) => " (another run uses it)",
            Some(1 | 13) => " (root of the machine is needed)",
            _ => "",
        };
        failed(&format!("pktgen: {file}: {words}{why}"), error)
    })
}

fn failed(doing: &str, source: io::Error) -> Error {
    Error::Io { doing: doing.to_owned(), source }
}

/// The result that the device's file ends with.
fn parse(text: &str) -> Option<Generated> {
    let after = |word: &str| {
        let (_, rest) = text.split_once(word)?;
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    if !text.contains("Result: OK") {
        return None;
    }
    Some(Generated {
        sent: after("pkts-sofar:")?,
        errors: after("errors:")?,
        microseconds: after("Result: OK:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a 6.1 kernel prints it.
    const REPORT: &str = "Params: count 2000  min_pkt_size: 200  max_pkt_size: 200\n     \
        frags: 0  delay: 200000  clone_skb: 0  ifname: eth0\n     flows: 0 flowlen: 0\n\
        Current:\n     pkts-sofar: 2000  errors: 3\n     started: 6512870us  stopped: 6912871us \
        idle: 399112us\n     seq_num: 2001  cur_dst_mac_offset: 0  cur_src_mac_offset: 0\n\
        Result: OK: 400001(c889+d399112) usec, 2000 (200byte,0frags)\n  4999pps 7Mb/sec \
        (7998400bps) errors: 3\n";

    #[test]
    fn reports_are_read() {
        let wanted = Generated { sent: 2000, errors: 3, microseconds: 400_001 };
        assert_eq!(parse(REPORT), Some(wanted));
        assert_eq!(parse("Result: Idle"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_kernel_without_it_is_told_in_words() {
        if let Some(words) = pktgen_missing() {
            assert!(words.contains("CONFIG_NET_PKTGEN"), "{words}");
        }
    }
}
