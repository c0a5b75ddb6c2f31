//! Plots as SVG, for pages in light and dark: colours are the page's, by class.

use std::fmt::Write as _;

use crate::outcome::human;

/// Colours that the page has (`.c0` to `.c11`); more series share them.
const COLOURS: usize = 12;
const WIDTH: f64 = 760.0;
/// Room for the names of groups, or the labels of the vertical axis.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 130.0;
const LINE: f64 = 18.0;

/// A value with the range of its runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) value: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// One subject's values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    /// The same in all plots of a page.
    pub(super) colour: usize,
    /// For bars, `x` is the number of the group.
    pub(super) points: Vec<Point>,
}

/// Horizontal bars, grouped.
pub(super) fn bars(unit: &str, groups: &[String], series: &[Series]) -> String {
    let scale = Scale::of(series);
    let at = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * scale.place(value);
    let mut body = String::new();
    let mut y = legend(&mut body, series);
    // Drawn over the grid.
    let mut marks = String::new();
    for (number, group) in groups.iter().enumerate() {
        let members = series.iter().filter_map(|series| {
            let point = series.points.iter().find(|point| point.x == number as f64)?;
            Some((series, point))
        });
        let top = y;
        for (series, point) in members {
            let (length, middle) = (at(point.value) - LEFT, y + LINE / 2.0);
            let class = series.colour % COLOURS;
            let tip = escape(&format!("{}: {}", series.name, human(point.value, unit)));
            put(
                &mut marks,
                format_args!(
                    "<rect class='c{class}' x='{LEFT}' y='{:.1}' width='{length:.1}' height='{:.1}'>\
                 <title>{tip}</title></rect>",
                    y + 2.0,
                    LINE - 4.0
                ),
            );
            let (from, to) = (at(point.least), at(point.most));
            put(
                &mut marks,
                format_args!("<path class='range' d='M{from:.1} {middle:.1}H{to:.1}'/>"),
            );
            put(
                &mut marks,
                format_args!(
                    "<text x='{:.1}' y='{:.1}'>{}</text>",
                    to.max(LEFT + length) + 6.0,
                    middle + 4.0,
                    escape(&human(point.value, unit))
                ),
            );
            y += LINE;
        }
        for (line, words) in wrap(group, 24).iter().enumerate() {
            put(
                &mut marks,
                format_args!(
                    "<text class='end' x='{:.1}' y='{:.1}'>{}</text>",
                    LEFT - 10.0,
                    top + LINE * (line as f64 + 0.75),
                    escape(words)
                ),
            );
            y = y.max(top + LINE * (line as f64 + 1.0));
        }
        y += 10.0;
    }
    let top = legend_height(series);
    let ticks = scale.ticks(unit);
    let step =
        label_step(&ticks.iter().map(|tick| (at(*tick), label(*tick, unit))).collect::<Vec<_>>());
    for (number, tick) in ticks.into_iter().enumerate() {
        let x = at(tick);
        put(&mut body, format_args!("<path class='grid' d='M{x:.1} {top:.1}V{:.1}'/>", y - 6.0));
        if number % step != 0 {
            continue;
        }
        let words = escape(&label(tick, unit));
        put(
            &mut body,
            format_args!("<text class='middle' x='{x:.1}' y='{:.1}'>{words}</text>", y + 8.0),
        );
    }
    let bottom = y - 6.0;
    y += LINE;
    body.push_str(&marks);
    put(&mut body, format_args!("<path class='axis' d='M{LEFT} {top:.1}V{bottom:.1}'/>"));
    frame(y, &body)
}

/// Where a value lies between the ends of an axis, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    /// From zero to this.
    Linear(f64),
    /// Between these, where values are too far apart to be seen otherwise.
    Logarithmic(f64, f64),
}

/// Largest over smallest value from which on an axis is logarithmic.
const FAR_APART: f64 = 50.0;

impl Scale {
    fn of(series: &[Series]) -> Self {
        let values = series.iter().flat_map(|series| &series.points).map(|point| point.value);
        let least = values.filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
        let most = largest(series);
        if most / least < FAR_APART {
            return Self::Linear(most);
        }
        Self::Logarithmic(10f64.powf(least.log10().floor()), most)
    }

    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear(most) => value / most,
            Self::Logarithmic(least, most) => {
                (value.max(least).ln() - least.ln()) / (most.ln() - least.ln())
            }
        }
    }

    /// Round values that are written at the axis.
    fn ticks(self, unit: &str) -> Vec<f64> {
        match self {
            Self::Linear(most) => ticks(most, unit),
            Self::Logarithmic(least, most) => {
                let powers = (0..).map(|power| least * 10f64.powi(power));
                powers.take_while(|tick| *tick <= most).collect()
            }
        }
    }
}

/// Lines over a logarithmic axis of numbers.
pub(super) fn lines(unit: &str, axis: &str, series: &[Series]) -> String {
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 110.0;
    let most = largest(series);
    let mut xs: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p.x)).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let (first, last) = (xs.first().copied().unwrap_or(1.0), xs.last().copied().unwrap_or(1.0));
    let span = (last.ln() - first.ln()).max(1e-9);
    let mut body = String::new();
    let top = legend(&mut body, series) + 6.0;
    let at_x = |x: f64| LEFT + (x.ln() - first.ln()) / span * (WIDTH - LEFT - 40.0);
    let at_y = |y: f64| top + HEIGHT * (1.0 - y / most);
    for tick in ticks(most, unit) {
        let y = at_y(tick);
        put(&mut body, format_args!("<path class='grid' d='M{LEFT} {y:.1}H{:.1}'/>", WIDTH - 30.0));
        put(
            &mut body,
            format_args!(
                "<text class='end' x='{:.1}' y='{:.1}'>{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escape(&label(tick, unit))
            ),
        );
    }
    let bottom = top + HEIGHT;
    for x in &xs {
        put(&mut body, format_args!("<path class='axis' d='M{0:.1} {bottom:.1}v5'/>", at_x(*x)));
        put(
            &mut body,
            format_args!(
                "<text class='middle' x='{:.1}' y='{:.1}'>{}</text>",
                at_x(*x),
                bottom + 20.0,
                short(*x)
            ),
        );
    }
    put(
        &mut body,
        format_args!(
            "<text class='middle' x='{:.1}' y='{:.1}'>{}</text>",
            (LEFT + WIDTH - 40.0) / 2.0,
            bottom + 42.0,
            escape(axis)
        ),
    );
    put(
        &mut body,
        format_args!("<path class='axis' d='M{LEFT} {top:.1}V{bottom:.1}H{:.1}'/>", WIDTH - 30.0),
    );
    for series in series {
        let class = series.colour % COLOURS;
        let path: Vec<String> = series
            .points
            .iter()
            .map(|point| format!("{:.1} {:.1}", at_x(point.x), at_y(point.value)))
            .collect();
        put(&mut body, format_args!("<path class='line s{class}' d='M{}'/>", path.join("L")));
        for point in &series.points {
            let (x, y) = (at_x(point.x), at_y(point.value));
            put(
                &mut body,
                format_args!(
                    "<path class='range' d='M{x:.1} {:.1}V{:.1}'/>",
                    at_y(point.least),
                    at_y(point.most)
                ),
            );
            let tip = format!("{}, {}: {}", series.name, short(point.x), human(point.value, unit));
            put(
                &mut body,
                format_args!(
                    "<circle class='c{class}' cx='{x:.1}' cy='{y:.1}' r='3.5'><title>{}</title></circle>",
                    escape(&tip)
                ),
            );
        }
    }
    frame(bottom + 54.0, &body)
}

fn frame(height: f64, body: &str) -> String {
    format!(
        "<svg viewBox='0 0 {WIDTH} {height:.0}' width='{WIDTH}' role='img' \
         xmlns='http://www.w3.org/2000/svg'>{body}</svg>"
    )
}

fn put(body: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string never fails.
    let _ = body.write_fmt(what);
}

/// Draws the legend and returns where it ends.
fn legend(body: &mut String, series: &[Series]) -> f64 {
    let (mut x, mut y) = (10.0, 8.0);
    for series in series {
        let width = legend_width(&series.name);
        if x + width > WIDTH {
            (x, y) = (10.0, y + LINE);
        }
        let class = series.colour % COLOURS;
        put(
            body,
            format_args!(
                "<rect class='c{class}' x='{x}' y='{y}' width='12' height='12'/><text x='{}' \
             y='{}'>{}</text>",
                x + 17.0,
                y + 11.0,
                escape(&series.name)
            ),
        );
        x += width;
    }
    y + LINE + 8.0
}

fn legend_width(name: &str) -> f64 {
    7.2 * name.chars().count() as f64 + 36.0
}

fn legend_height(series: &[Series]) -> f64 {
    legend(&mut String::new(), series)
}

fn largest(series: &[Series]) -> f64 {
    let all = series.iter().flat_map(|series| &series.points);
    all.map(|point| point.value.max(point.most)).fold(f64::MIN_POSITIVE, f64::max)
}

/// A number at an axis.
fn label(tick: f64, unit: &str) -> String {
    if tick == 0.0 { "0".to_owned() } else { human(tick, unit) }
}

/// Every how many labels have room beside each other.
fn label_step(labels: &[(f64, String)]) -> usize {
    let widest = labels.iter().map(|(_, words)| 7.2 * words.chars().count() as f64 + 12.0);
    let widest = widest.fold(0.0, f64::max);
    let closest = labels.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(f64::MAX, f64::min);
    (widest / closest).ceil().max(1.0) as usize
}

/// Numbers from zero on, four to eight of them, that are round in their unit.
fn ticks(most: f64, unit: &str) -> Vec<f64> {
    let mut scale = 1.0;
    while unit == "bytes" && most / scale >= 1024.0 {
        scale *= 1024.0;
    }
    round(most / scale).into_iter().map(|tick| tick * scale).collect()
}

fn round(most: f64) -> Vec<f64> {
    let rough = most / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|s| *s >= rough);
    let step = step.unwrap_or(power);
    (0..).map(|number| f64::from(number) * step).take_while(|tick| *tick <= most).collect()
}

fn short(x: f64) -> String {
    match x {
        _ if x >= 1048576.0 && x % 1048576.0 == 0.0 => format!("{} Mi", x / 1048576.0),
        _ if x >= 1024.0 && x % 1024.0 == 0.0 => format!("{} Ki", x / 1024.0),
        _ if x >= 1e6 && x % 1e5 == 0.0 => format!("{} M", x / 1e6),
        _ if x >= 1e5 && x % 1e3 == 0.0 => format!("{} k", x / 1e3),
        _ => format!("{x}"),
    }
}

/// Words in lines of so many characters at most.
fn wrap(text: &str, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + word.len() >= most {
            lines.push(word.to_owned());
        } else {
            let space = if lines[last].is_empty() { "" } else { " " };
            lines[last] = format!("{}{space}{word}", lines[last]);
        }
    }
    lines
}

/// Text as HTML and SVG take it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        let of = |most| ticks(most, "ns");
        assert_eq!(of(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(of(870.0), [0.0, 200.0, 400.0, 600.0, 800.0]);
        for most in [0.001, 3.3, 99.0, 1e9] {
            assert!((4..=8).contains(&of(most).len()), "{most}: {:?}", of(most));
        }
        let mebibytes = ticks(417.0 * 1048576.0, "bytes");
        assert_eq!(mebibytes[1], 100.0 * 1048576.0);
    }

    #[test]
    fn labels_are_left_out_where_they_would_touch() {
        let labels = |distance: f64, words: &str| {
            (0..5).map(|at| (f64::from(at) * distance, words.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(label_step(&labels(100.0, "10.0 us")), 1);
        assert_eq!(label_step(&labels(80.0, "10.0 us/packet")), 2);
        assert_eq!(label_step(&[]), 1);
    }

    #[test]
    fn what_is_drawn_is_what_there_is() {
        let point = |x, value| Point { x, value, least: value, most: value };
        let series = vec![
            Series {
                name: "a<b".into(),
                colour: 0,
                points: vec![point(0.0, 1.0), point(1.0, 2.0)],
            },
            Series { name: "c".into(), colour: 9, points: vec![point(1.0, 4.0)] },
        ];
        let svg = bars("packets/s", &["one".into(), "two".into()], &series);
        // A bar each and a square in the legend each.
        assert_eq!(svg.matches("<rect").count(), 3 + 2);
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"), "{svg}");
        let svg = lines("packets/s", "flows", &series[1..]);
        assert_eq!((svg.matches("<circle").count(), svg.matches("class='line").count()), (1, 1));
    }

    #[test]
    fn what_is_far_apart_is_on_a_logarithmic_axis() {
        let series = |values: &[f64]| {
            let point = |value: &f64| Point { x: 0.0, value: *value, least: *value, most: *value };
            vec![Series { name: "a".into(), colour: 0, points: values.iter().map(point).collect() }]
        };
        assert_eq!(Scale::of(&series(&[2.0, 40.0])), Scale::Linear(40.0));
        let scale = Scale::of(&series(&[20.0, 1e5]));
        assert_eq!(scale, Scale::Logarithmic(10.0, 1e5));
        let places = [10.0, 1e3, 1e5].map(|value| (scale.place(value) * 1000.0).round());
        assert_eq!(places, [0.0, 500.0, 1000.0]);
        assert_eq!(scale.ticks("ns"), [10.0, 100.0, 1e3, 1e4, 1e5]);
    }

    #[test]
    fn long_names_are_wrapped() {
        assert_eq!(wrap("a bb ccc", 5), ["a bb", "ccc"]);
    }
}
