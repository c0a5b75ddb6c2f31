//! How fast frames go from one veth through two sockets on one area to
//! another, 14 bytes longer, and where the time goes.
//!
//! ```text
//! generator, CPU 1          router, CPU 0                   sink, CPU 0
//! live test runs -> g0 - g1: receive, push 14 bytes, send: s0 - s1: count, drop
//! ```
//!
//! All devices are in a network namespace of the program's own. Run as root:
//!
//! ```sh
//! cargo run --release -p tieline-xsk --example veth_rate -- mode=native-copy batch=64
//! ```
//!
//! Settings, all optional: `mode`, `batch` (frames per round), `ring` (frames
//! per ring), `size` (bytes per frame), `flows`, `seconds` (per run), `runs`,
//! `chunk` (bytes). The medians of the runs are printed. The clocks per frame
//! are those of the router's thread, and include what the kernel does for the
//! sink, which runs at the end of the transmit call.

use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tieline_xsk::area::{Area, Descriptor};
use tieline_xsk::filter::{Filter, FilterConfig, Link};
use tieline_xsk::generator::{Generator, Sink, Vary};
use tieline_xsk::socket::{Mode, Socket, SocketConfig};
use tieline_xsk::{device, hint, memlock};

/// Frames per call of the generator: half a second's or so.
const BURST: u32 = 1 << 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Clone, Copy, Debug)]
struct Settings {
    mode: Mode,
    batch: u32,
    ring: u32,
    size: usize,
    flows: u32,
    seconds: f64,
    runs: usize,
    chunk: u32,
}

impl Settings {
    fn read() -> Outcome<Self> {
        let mut settings = Self {
            mode: Mode::NativeCopy,
            batch: 64,
            ring: 2048,
            size: 64,
            flows: 64,
            seconds: 1.0,
            runs: 5,
            chunk: 2048,
        };
        for argument in std::env::args().skip(1) {
            let (name, value) = argument.split_once('=').ok_or("use name=value")?;
            match name {
                "mode" => settings.mode = value.parse()?,
                "batch" => settings.batch = value.parse()?,
                "ring" => settings.ring = value.parse()?,
                "size" => settings.size = value.parse::<usize>()?.max(60),
                "flows" => settings.flows = value.parse()?,
                "seconds" => settings.seconds = value.parse()?,
                "runs" => settings.runs = value.parse::<usize>()?.max(1),
                "chunk" => settings.chunk = value.parse()?,
                _ => return Err(format!("{name} is no setting").into()),
            }
        }
        Ok(settings)
    }
}

/// Where the router's time goes, in clocks.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    frames: u64,
    rounds: u64,
    receive: u64,
    work: u64,
    send: u64,
    wake: u64,
    recycle: u64,
    idle: u64,
}

struct Port {
    socket: Socket,
    _filter: Filter,
    _link: Link,
}

impl Port {
    fn open(area: &mut Area, name: &str, settings: &Settings) -> Outcome<Self> {
        let ifindex = device::index(name)?;
        let liveness = Duration::from_secs(3600);
        let mut filter = Filter::gateway(&FilterConfig { port: 4789, liveness, queues: 1 })?;
        let link = filter.attach(ifindex, settings.mode.native())?;
        let ring = settings.ring;
        let rings = SocketConfig { fill: ring, receive: ring, transmit: ring, completion: ring };
        let mut socket = Socket::bind(area, ifindex, 0, settings.mode, &rings)?;
        filter.set_socket(0, &socket)?;
        filter.heartbeat(0).beat(hint::monotonic_ns());
        socket.refill(area);
        Ok(Self { socket, _filter: filter, _link: link })
    }
}

fn main() -> Outcome<()> {
    let settings = Settings::read()?;
    // SAFETY: takes no pointers; affects this thread and those that it makes.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err("a network namespace can't be made: run as root".into());
    }
    memlock::raise()?;
    for (one, other) in [("g0", "g1"), ("s0", "s1")] {
        ip(&format!("link add {one} type veth peer name {other}"))?;
        ip(&format!("link set {one} up"))?;
        ip(&format!("link set {other} up"))?;
        // With generic receive offload a veth takes redirected frames without
        // a native program as well.
        device::enable_offloads(other)?;
    }
    let mut area = Area::new(settings.ring * 4 + 2 * settings.batch, settings.chunk)?;
    let mut input = Port::open(&mut area, "g1", &settings)?;
    let mut output = Port::open(&mut area, "s0", &settings)?;
    let sink = Sink::attach(device::index("s1")?, true)?;
    println!("{settings:?}, {} pages", area.pages());

    let stop = Arc::new(AtomicBool::new(false));
    let generator = generate(&settings, stop.clone())?;
    pin(0);
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..settings.runs {
        let (before, started) = (sink.frames(), Instant::now());
        let end = started + Duration::from_secs_f64(settings.seconds);
        let spent = route(&mut area, &mut input.socket, &mut output.socket, settings.batch, end);
        rates.push((sink.frames() - before) as f64 / started.elapsed().as_secs_f64() / 1e6);
        shares.push(spent);
    }
    stop.store(true, Ordering::Relaxed);
    generator.join().map_err(|_| "the generator panicked")?;
    report(&rates, &shares);
    println!("in:  {:?}", input.socket.statistics());
    println!("out: {:?}", output.socket.statistics());
    Ok(())
}

fn generate(settings: &Settings, stop: Arc<AtomicBool>) -> Outcome<std::thread::JoinHandle<()>> {
    let mut frame = vec![0; settings.size];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let vary = (settings.flows > 1).then_some(Vary { at: 34, values: settings.flows });
    let generator = Generator::new(device::index("g0")?, vary)?;
    Ok(std::thread::spawn(move || {
        pin(1);
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = generator.send(&frame, BURST) {
                eprintln!("generator: {error}");
                return;
            }
        }
    }))
}

/// One run of the router.
fn route(
    area: &mut Area,
    input: &mut Socket,
    output: &mut Socket,
    batch: u32,
    end: Instant,
) -> Spent {
    let mut spent = Spent::default();
    let mut frames: Vec<Descriptor> = Vec::with_capacity(2 * batch as usize);
    let mut rounds = 0u32;
    loop {
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(64) && Instant::now() >= end {
            return spent;
        }
        let start = hint::cycles();
        let room = batch - frames.len() as u32;
        let received = input.receive(area, room, |frame| frames.push(frame)) as u64;
        let received_at = hint::cycles();
        let fresh = frames.len() - received as usize;
        for frame in &mut frames[fresh..] {
            frame.head -= 14;
            frame.len += 14;
            area.bytes_mut(frame.chunk, frame.head, 14).fill(0x5a);
        }
        let worked_at = hint::cycles();
        let sent = output.send(area, frames.iter().copied());
        frames.drain(..sent);
        let sent_at = hint::cycles();
        output.wake();
        let woken_at = hint::cycles();
        output.reclaim(area);
        input.refill(area);
        let recycled_at = hint::cycles();
        if received == 0 {
            spent.idle += recycled_at - start;
            continue;
        }
        spent.rounds += 1;
        spent.frames += received;
        spent.receive += received_at - start;
        spent.work += worked_at - received_at;
        spent.send += sent_at - worked_at;
        spent.wake += woken_at - sent_at;
        spent.recycle += recycled_at - woken_at;
    }
}

fn report(rates: &[f64], shares: &[Spent]) {
    let per_frame = |part: fn(&Spent) -> u64| {
        median(shares.iter().map(|s| part(s) as f64 / s.frames.max(1) as f64).collect())
    };
    println!("{:.3} Mpps (median; all: {rates:.3?})", median(rates.to_vec()));
    println!(
        "clocks per frame: receive {:.0}, work {:.0}, send {:.0}, wake {:.0}, recycle {:.0}, idle \
         {:.0}; frames per round {:.1}",
        per_frame(|s| s.receive),
        per_frame(|s| s.work),
        per_frame(|s| s.send),
        per_frame(|s| s.wake),
        per_frame(|s| s.recycle),
        per_frame(|s| s.idle),
        median(shares.iter().map(|s| s.frames as f64 / s.rounds.max(1) as f64).collect()),
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn ip(arguments: &str) -> Outcome<()> {
    let status = Command::new("ip").args(arguments.split_whitespace()).status()?;
    if status.success() { Ok(()) } else { Err(format!("ip {arguments}: {status}").into()) }
}

/// Pins the calling thread, where the machine has that CPU.
fn pin(cpu: usize) {
    let mut set = [0u64; 16];
    set[0] = 1 << cpu;
    // SAFETY: the set is valid for reading the length that is given.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), set.as_ptr().cast()) };
}
