//! Guests: other kernels than the machine's, in an emulator.
//!
//! ```text
//! Kernels::fetched   Debian's kernels, unpacked below the target directory
//! run                kernel + initramfs -> console -> Console
//! ```
//!
//! A guest has two virtio network cards that a hub of the emulator joins, set up
//! so that a driver that can do AF_XDP zero copy does, and two CPUs. It runs the
//! program `guest` (`src/bin/guest.rs`) and powers off. Nothing of it touches this
//! machine's network, and `/dev/kvm` is not used: a guest is slow, but the same
//! everywhere. Start reading at [`run`].

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

mod initramfs;

use initramfs::{Initramfs, read};

/// What has to go into the kernel, in this order; what a kernel has built in has
/// no module.
const MODULES: [&str; 14] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "veth",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "vxlan",
    "pktgen",
    "sch_netem",
];

const EMULATOR: &str = "qemu-system-x86_64";

/// No offloads, which XDP in the driver does not go with. The DMA interface that
/// `iommu_platform` turns on is what zero copy needs.
const CARD: &str = "disable-legacy=on,iommu_platform=on,guest_csum=off,guest_tso4=off,\
                    guest_tso6=off,guest_ecn=off,guest_ufo=off,csum=off,gso=off,romfile=";

/// Why no guest can be run here: something of the machine is missing.
#[derive(Debug)]
pub struct Fault(String);

impl Fault {
    fn new(what: String) -> Self {
        Self(what)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a guest printed.
#[derive(Debug, Default)]
pub struct Console {
    lines: Vec<String>,
    /// Whether the guest powered off by itself in time.
    pub ended: bool,
}

impl Console {
    /// All of it.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// What follows a word at the start of lines.
    pub fn after<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// The guest kernel's messages of level warning and worse, from the first
    /// module on.
    pub fn kernel_warnings(&self) -> Vec<&str> {
        let level = |line: &str| line.strip_prefix('<')?.split_once('>')?.0.parse().ok();
        let bad = |line: &&str| level(line).is_none_or(|level: u32| level & 7 <= 4);
        self.after("GUEST-KERNEL").filter(bad).collect()
    }
}

/// Runs the guest program `guest` with the daemon `tieline` under a kernel of
/// `folder` (as `tests/guest/fetch` leaves it), for `within` at most. `settings`
/// are the kernel's.
pub fn run(
    folder: &Path,
    settings: &str,
    guest: &Path,
    tieline: &Path,
    scratch: &Path,
    within: Duration,
) -> Result<Console, Fault> {
    let image = scratch.join("initramfs");
    let archive = pack(folder, guest, tieline)?;
    fs::write(&image, archive).map_err(|error| Fault::new(format!("write initramfs: {error}")))?;
    let mut command = Command::new(EMULATOR);
    command.args(["-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "768"]);
    command.args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
    for card in 0..2 {
        command.arg("-netdev").arg(format!("hubport,id=n{card},hubid=0"));
        command.arg("-device").arg(format!("virtio-net-pci,netdev=n{card},{CARD}"));
    }
    command.arg("-kernel").arg(folder.join("vmlinuz")).arg("-initrd").arg(&image);
    let settings = format!("console=ttyS0 panic=-1 quiet loglevel=1 {settings}");
    command.arg("-append").arg(settings);
    let errors = scratch.join("emulator.err");
    let file = File::create(&errors).map_err(|error| Fault::new(error.to_string()))?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn();
    let child = child.map_err(|error| Fault::new(format!("start {EMULATOR}: {error}")))?;
    let mut console = watch(Emulator(child), within);
    let errors = fs::read_to_string(errors).unwrap_or_default();
    console.lines.extend(errors.lines().map(|line| format!("emulator: {line}")));
    Ok(console)
}

fn pack(folder: &Path, guest: &Path, tieline: &Path) -> Result<Vec<u8>, Fault> {
    let mut image = Initramfs::default();
    image.file("/init", include_bytes!("../../guest/init"));
    for name in ["busybox", "ip", "bridge", "tc"] {
        image.program(name, &which(name)?)?;
    }
    image.program("guest", guest)?;
    image.program("tieline", tieline)?;
    for (number, name) in MODULES.iter().enumerate() {
        if let Some(path) = find(&folder.join("modules"), name) {
            image.file(format!("/modules/{number:02}-{name}.ko"), &module(&path)?);
        }
    }
    Ok(image.finish())
}

/// A program in the search path.
fn which(name: &str) -> Result<PathBuf, Fault> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin".into(), "/sbin".into()];
    let all = std::env::split_paths(&path).chain(sbin).map(|folder| folder.join(name));
    all.into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Fault::new(format!("no program {name} here")))
}

/// The file of a kernel module.
fn find(folder: &Path, module: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(module));
            if matches!(rest, Some(".ko" | ".ko.xz")) {
                return Some(entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    None
}

/// A module as the kernel loads it.
fn module(path: &Path) -> Result<Vec<u8>, Fault> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return read(path);
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output();
    let output = output.map_err(|error| Fault::new(format!("run xz: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Fault::new(format!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr))))
}

/// A running emulator; killed when dropped.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn watch(mut emulator: Emulator, within: Duration) -> Console {
    let deadline = Instant::now() + within;
    let (sender, lines) = mpsc::channel();
    let output = emulator.0.stdout.take().map(BufReader::new);
    let reader = std::thread::spawn(move || {
        for line in output.into_iter().flat_map(|output| output.split(b'\n')).map_while(Result::ok)
        {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut console = Console::default();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => console.lines.push(line),
            Err(RecvTimeoutError::Disconnected) => {
                console.ended = true;
                break;
            }
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    drop(emulator);
    // Its output has ended with it.
    let _ = reader.join();
    console
}

/// Unpacks the kernels into `folder`, which takes a minute the first time.
pub fn fetch(folder: &Path) -> Result<(), Fault> {
    // Tests that run side by side take turns: the second finds all there.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    which(EMULATOR)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/fetch");
    let output = Command::new("bash").arg(script).arg(folder).output();
    let output = output.map_err(|error| Fault::new(format!("run tests/guest/fetch: {error}")))?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Fault::new(format!("tests/guest/fetch failed: {}", said.trim())))
}
