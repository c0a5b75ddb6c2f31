//! `tieline demo`: two clusters on this machine, joined, with real traffic.
//!
//! ```text
//! script     the story as a table: acts, connections, what must come of them
//! ground     what this machine lets us do
//! clusters   namespaces, pod servers, daemons, questions to them
//! place      where everything is: addresses
//! manifests  what Kubernetes and Calico would have stored
//! play       does what the script says and notes what came of it
//! captures   the same where no namespace can be had: packet paths in memory
//! frames     what pods send there
//! account    what came of it, for people and programs
//! ```
//!
//! Promises: exit code 0 only if every expectation held; whatever happens, all
//! that was made is gone afterwards, unless `--keep` says otherwise. The demo
//! uses the product as its users do: configuration files, manifests, `run`,
//! `status` and `explain`. Start reading at [`script::STORY`].

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use tieline_lab::{Closer, Lab, TcpServer, remove_kept};

use super::text::{Tone, paint};
use super::{Output, verdict};
use account::{Account, Fact, Line, SceneAccount, render};
use captures::Captures;
use clusters::Clusters;
use ground::{Ground, ground};
use play::Play;
use script::{Act, Beat, Connection, END, NAMESPACE, STORY, Scene};

mod account;
mod captures;
mod clusters;
mod frames;
mod ground;
mod manifests;
mod place;
mod play;
mod script;

/// Prefix of the lab's names.
const PREFIX: &str = "demo";

/// Arguments of `tieline demo`.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Leave the clusters up and say how to look around
    #[arg(long)]
    keep: bool,
    /// Remove clusters that were left up
    #[arg(long, conflicts_with = "keep")]
    down: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Serve these TCP ports: what runs in the pods
    #[arg(long, hide = true, value_delimiter = ',', value_name = "PORTS")]
    pod_server: Vec<u16>,
    /// Make do with less than this machine allows
    #[arg(long, hide = true, value_enum)]
    ground: Option<Forced>,
}

/// Grounds that can be had anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Forced {
    /// As where no network namespace can be made.
    Captures,
}

/// Where the story can be played.
trait Stage {
    /// Does something to the clusters.
    fn act(&mut self, act: Act) -> anyhow::Result<Vec<Fact>>;

    /// Asks about connections and makes them, each in both families.
    fn try_all(&mut self, connections: &[Connection]) -> anyhow::Result<Vec<Line>>;
}

/// Plays the demo. Exits 1 when something is not as expected.
pub(super) fn main(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if !args.pod_server.is_empty() {
        return serve(&args.pod_server);
    }
    if args.down {
        println!("{} demo(s) removed", remove_kept(PREFIX)?);
        return Ok(ExitCode::SUCCESS);
    }
    let ground = match args.ground {
        Some(Forced::Captures) => Ground::Nothing("it was asked for".to_owned()),
        None => ground(),
    };
    match ground {
        Ground::Root => in_namespaces(args, "root", "auto"),
        Ground::UserNamespace => in_namespaces(args, "user-namespace", "packet"),
        Ground::Unprivileged => Err(ground::enter_user_namespace()),
        Ground::Nothing(why) => in_memory(args, &why),
    }
}

/// What runs in a pod: echo servers, until killed.
fn serve(ports: &[u16]) -> anyhow::Result<ExitCode> {
    let _servers: Vec<_> =
        ports.iter().map(|port| TcpServer::here(*port)).collect::<Result<_, _>>()?;
    loop {
        std::thread::park();
    }
}

/// The demo with real daemons and sockets; `mode` is the daemons' port.
fn in_namespaces(args: &DemoArgs, ground: &str, mode: &str) -> anyhow::Result<ExitCode> {
    let aloud = args.output == Output::Text;
    let lab = Lab::new(PREFIX)?;
    let interrupted = clean_up_on_signals(lab.closer())?;
    if aloud {
        introduce(ground);
    }
    let mut play = Play::new(&lab, mode);
    let end = (!args.keep).then_some(&END);
    let account = tell(args, ground, &mut play, end, &interrupted)?;
    if account.count().1 > 0 {
        for daemon in play.clusters().iter().flat_map(|clusters| clusters.daemons()) {
            eprintln!("\nlog of {}:\n{}", daemon.node, daemon.last_words());
        }
    }
    if args.keep && play.clusters().is_ok() {
        if aloud {
            look_around(&lab, play.clusters()?, ground)?;
        }
        lab.keep()?;
    }
    Ok(verdict(account.ok))
}

/// The demo without any kernel's help; `why` it has to do without.
fn in_memory(args: &DemoArgs, why: &str) -> anyhow::Result<ExitCode> {
    if args.keep {
        bail!("--keep needs network namespaces, which can't be made here: {why}; {NAMESPACES_HOW}");
    }
    let lab = Lab::new(PREFIX)?;
    let interrupted = clean_up_on_signals(lab.closer())?;
    if args.output == Output::Text {
        println!(
            "Two Calico-like clusters in memory: real configurations, manifests, tables and \
             frames, each through the packet paths of both its nodes.\nNo network namespaces can \
             be made here ({why}), so there are no daemons, sockets or kernels. For those, \
             {NAMESPACES_HOW}."
        );
    }
    let account = tell(args, "captures", &mut Captures::new(&lab), None, &interrupted)?;
    Ok(verdict(account.ok))
}

/// What to do about missing namespaces.
const NAMESPACES_HOW: &str = "run the demo as root, or allow unprivileged user namespaces (sysctl \
                              user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)";

/// Tells the story on a stage, and how it ends, and gives account.
fn tell(
    args: &DemoArgs,
    ground: &str,
    stage: &mut dyn Stage,
    end: Option<&Scene>,
    interrupted: &AtomicBool,
) -> anyhow::Result<Account> {
    let aloud = args.output == Output::Text;
    let begun = Instant::now();
    let mut account = Account { ground: ground.to_owned(), ..Account::default() };
    let mut played = Ok(());
    for (number, scene) in (1..).zip(STORY.iter().chain(end)) {
        match play_scene(stage, number, scene, aloud) {
            Ok(scene) => account.scenes.push(scene),
            Err(error) => {
                played = Err(error);
                break;
            }
        }
    }
    account.seconds = begun.elapsed().as_secs_f64();
    let (count, failed) = account.count();
    account.ok = played.is_ok() && failed == 0;
    if let Err(error) = &played {
        if interrupted.load(Ordering::Relaxed) {
            // The other thread cleans up and ends the process.
            loop {
                std::thread::park();
            }
        }
        eprintln!("tieline demo: {error:#}");
    }
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&account)?),
        Output::Text => conclude(&account, count, failed),
    }
    Ok(account)
}

fn play_scene(
    stage: &mut dyn Stage,
    number: usize,
    scene: &Scene,
    aloud: bool,
) -> anyhow::Result<SceneAccount> {
    let mut account = SceneAccount { title: scene.title.to_owned(), lines: Vec::new() };
    if aloud {
        let title = format!("{number}. {}", scene.title);
        println!("\n{}", paint(&title, Tone::Strong));
    }
    for beat in scene.beats {
        let lines = match beat {
            Beat::Do(act) => stage.act(*act)?.into_iter().map(Line::Fact).collect(),
            Beat::Try(connections) => stage.try_all(connections)?,
        };
        if aloud {
            print!("{}", render(&lines));
        }
        account.lines.extend(lines);
    }
    Ok(account)
}

/// Ends everything on SIGINT, SIGTERM and SIGHUP, then the process.
fn clean_up_on_signals(closer: Closer) -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let interrupted = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start an event loop")?;
    let entered = runtime.enter();
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    drop(entered);
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => 2,
                _ = terminate.recv() => 15,
                _ = hangup.recv() => 1,
            }
        });
        tell.store(true, Ordering::Relaxed);
        eprintln!("\ntieline demo: interrupted, cleaning up");
        closer.close();
        std::process::exit(128 + number);
    });
    Ok(interrupted)
}

fn introduce(ground: &str) {
    println!(
        "Two Calico-like clusters out of network namespaces: a real `tieline run` on every node, \
         real sockets in every pod."
    );
    if ground == "user-namespace" {
        println!(
            "Without root of this machine: in a user namespace, where there is no AF_XDP. The \
             daemons use packet sockets."
        );
    }
}

fn conclude(account: &Account, count: usize, failed: usize) {
    let seconds = account.seconds;
    let text = if account.ok {
        paint(&format!("All {count} expectations held, in {seconds:.1} s."), Tone::Good)
    } else if failed > 0 {
        paint(&format!("{failed} of {count} expectations did not hold."), Tone::Bad)
    } else {
        paint("The story could not be told to its end.", Tone::Bad)
    };
    println!("\n{text}");
}

/// Commands for somebody who stays.
fn look_around(lab: &Lab, clusters: &Clusters, ground: &str) -> anyhow::Result<()> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let (exe, dir) = (exe.display(), lab.dir().display());
    let daemon = clusters.daemon_of("backend")?;
    let (socket, pod) = (daemon.socket.display(), clusters.pod("backend")?.netns.name());
    let postgres = clusters.pod("postgres")?.v4;
    println!("\nThe clusters stay up. To look around:\n");
    if ground == "user-namespace" {
        let pid = daemon.pid();
        println!("  nsenter --target {pid} --user --mount --net --preserve-credentials");
        println!("  # then, in that shell:");
    }
    let commands = [
        (format!("{exe} status --socket {socket}"), "what a daemon is doing"),
        (
            format!(
                "{exe} explain --socket {socket} --from {NAMESPACE}/backend \
                 --to db:{NAMESPACE}/postgres --port 5432"
            ),
            "why a connection is allowed",
        ),
        (format!("ip netns exec {pod} sh"), "a shell in the pod backend"),
        (format!("ip netns exec {pod} nc {postgres} 5432"), "its postgres, which echoes"),
        (format!("ls {dir}/clusters/*"), "the manifests; a change counts at once"),
        (format!("cat {dir}/{}.err", daemon.node), "a daemon's log"),
    ];
    for (command, what) in commands {
        println!("  # {what}\n  {command}");
    }
    println!("\nTo remove them: {exe} demo --down");
    Ok(())
}
