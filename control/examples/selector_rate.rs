//! How fast selectors are parsed and matched, on one core:
//!
//! ```text
//! cargo run --release -p tieline --example selector_rate
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use tieline::policy::selector::Selector;
use tieline::state::Labels;

/// How long each is measured.
const TIME: Duration = Duration::from_secs(1);

/// Selectors of usual sizes, and one as long as is admitted.
fn selectors() -> Vec<(&'static str, String)> {
    let values: Vec<String> = (0..20).map(|n| format!("'value-{n}'")).collect();
    let group = "(app == 'web' && tier in {'fe', 'be'}) || !has(team) && env starts with 'p'";
    let longest = std::iter::successors(Some(group.to_owned()), |text| {
        Some(format!("{text} || {group}")).filter(|longer| longer.len() <= 1024)
    });
    vec![
        ("one label", "app == 'web'".to_owned()),
        ("three labels", "app == 'web' && tier != 'be' && has(team)".to_owned()),
        ("a set of 20 values", format!("app in {{{}}}", values.join(", "))),
        ("groups", group.to_owned()),
        ("1,024 characters", longest.last().unwrap_or_default()),
    ]
}

/// A pod's labels as rules see them.
fn labels(app: &str) -> Labels {
    let own = [("app", app), ("tier", "be"), ("team", "x"), ("env", "test"), ("version", "1.2.3")];
    let added = [
        ("projectcalico.org/namespace", "shop"),
        ("projectcalico.org/orchestrator", "k8s"),
        ("projectcalico.org/serviceaccount", "default"),
        ("pcns.projectcalico.org/name", "shop"),
        ("pcns.kubernetes.io/metadata.name", "shop"),
        ("pcsa.projectcalico.org/name", "default"),
    ];
    own.iter().chain(&added).map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// Repetitions per second.
fn rate(mut work: impl FnMut()) -> f64 {
    let (start, mut done) = (Instant::now(), 0_u64);
    while start.elapsed() < TIME {
        (0..256).for_each(|_| work());
        done += 256;
    }
    done as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let sets = [labels("web"), labels("value-19"), labels("none")];
    println!(
        "{:<20} {:>6} {:>14} {:>9} {:>14}",
        "selector", "bytes", "parsed/s", "MB/s", "matched/s"
    );
    for (name, text) in selectors() {
        let Ok(selector) = Selector::parse(&text) else {
            println!("{name}: not a selector");
            continue;
        };
        let parsed = rate(|| drop(black_box(Selector::parse(black_box(&text)))));
        let mut at = 0;
        let matched = rate(|| {
            at = (at + 1) % sets.len();
            black_box(selector.matches(black_box(&sets[at])));
        });
        let megabytes = parsed * text.len() as f64 / 1e6;
        println!("{name:<20} {:>6} {parsed:>14.0} {megabytes:>9.1} {matched:>14.0}", text.len());
    }
}
