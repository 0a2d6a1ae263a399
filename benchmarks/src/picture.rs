//! Bar charts and curves as SVG, with colours that are legible on a dark and on a light page.

use std::fmt::Write;

use crate::report::{COST, Column, LATENCY, RATE, Report};
use crate::scenario::{OUTSTANDING, PAYLOADS, PLACES, Payload, Place, Scenario};
use crate::systems::{Kind, System};

const WIDTH: f64 = 760.0;
const LABEL: f64 = 150.0;
const FIGURE: f64 = 70.0;
const LINE: f64 = 20.0;
/// Where the curves begin, below the heading and before their names.
const CURVES_FROM: f64 = 8.0 + LINE;
const TEXT: &str = "#7d8590";
const LIMIT: &str = "#8b949e";
const LIBRARY: &str = "#3b82f6";
const OURS: &str = "#e8772e";

/// A name and the content of every picture that there are figures for.
pub fn all(report: &Report) -> Vec<(String, String)> {
    let mut pictures = Vec::new();
    for place in PLACES {
        for payload in PAYLOADS {
            let column = if place == Place::AllInOne { COST } else { RATE };
            pictures.extend(draw(report, place, payload, column, &OUTSTANDING, ""));
        }
    }
    let latency = draw(report, Place::OnItsOwn, Payload::Fixed16, LATENCY, &[1], "latency-");
    pictures.extend(latency);
    pictures
}

fn draw(
    report: &Report,
    place: Place,
    payload: Payload,
    column: Column,
    outstanding: &[u64],
    prefix: &str,
) -> Option<(String, String)> {
    let systems = report.systems(place, payload);
    let mut canvas = Canvas::new();
    canvas.heading(&format!("{}, {}", payload.describe().replace('`', ""), place.describe()));
    canvas.note(&format!("{} (logarithmic scale)", column.title));
    let scale = Scale::fitting(report, place, payload, column, outstanding, &systems)?;
    for outstanding in outstanding {
        let scenario = Scenario { place, payload, outstanding: *outstanding };
        let bars: Vec<(&System, f64)> = systems
            .iter()
            .filter_map(|it| Some((it, report.median(scenario, it.name, column)?)))
            .collect();
        if bars.is_empty() {
            continue;
        }
        canvas.panel(&format!("{outstanding} outstanding"));
        for (system, value) in bars {
            canvas.bar(system, scale.length(value), &(column.text)(value));
        }
    }
    Some((format!("{prefix}{place}-{payload}.svg"), canvas.finish()))
}

/// Curves over one pair of axes, both from zero.
pub fn curves(title: &str, curves: &[(String, Vec<(f64, f64)>)]) -> String {
    const HEIGHT: f64 = 220.0;
    let mut canvas = Canvas::new();
    canvas.heading(title);
    let points = || curves.iter().flat_map(|(_, points)| points);
    let right = points().map(|(x, _)| *x).fold(1e-9, f64::max);
    let top = points().map(|(_, y)| *y).fold(1e-9, f64::max);
    for ((name, points), colour) in curves.iter().zip([OURS, LIBRARY, LIMIT].iter().cycle()) {
        canvas.text(FIGURE, &format!("fill=\"{colour}\" font-weight=\"bold\""), name);
        canvas.y += LINE;
        let place = |(x, y): &(f64, f64)| {
            let (x, y) = (x / right * (WIDTH - 2.0 * FIGURE), (1.0 - y / top) * HEIGHT);
            format!("{:.1},{y:.1}", FIGURE + x)
        };
        let path = points.iter().map(place).collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            canvas.body,
            "<polyline transform=\"translate(0 {:.0})\" points=\"{path}\" fill=\"none\" \
             stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            CURVES_FROM + LINE * curves.len() as f64
        );
    }
    for (share, y) in [(1.0, 0.0), (0.5, HEIGHT / 2.0), (0.0, HEIGHT)] {
        let below = y - LINE / 2.0;
        canvas.y += below;
        let label = format!("{:.0}", top * share);
        canvas.text(FIGURE - 8.0, "text-anchor=\"end\"", &label);
        canvas.y -= below;
    }
    canvas.y += HEIGHT + LINE / 2.0;
    canvas.text(FIGURE, "", "0");
    canvas.text(WIDTH - FIGURE, "text-anchor=\"end\"", &format!("{right:.1}"));
    canvas.y += LINE;
    canvas.finish()
}

/// A logarithmic scale, because the systems differ by orders of magnitude.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    /// From half of the smallest value, so that it has a bar, to the greatest.
    fn fitting(
        report: &Report,
        place: Place,
        payload: Payload,
        column: Column,
        outstanding: &[u64],
        systems: &[System],
    ) -> Option<Scale> {
        let scenarios =
            outstanding.iter().map(|count| Scenario { place, payload, outstanding: *count });
        let values: Vec<f64> = scenarios
            .flat_map(|scenario| {
                systems.iter().filter_map(move |it| report.median(scenario, it.name, column))
            })
            .collect();
        let least = values.iter().copied().reduce(f64::min)? / 2.0;
        let most = values.iter().copied().reduce(f64::max)?;
        Some(Scale { least, most })
    }

    fn length(&self, value: f64) -> f64 {
        let share = (value / self.least).ln() / (self.most / self.least).ln();
        share * (WIDTH - LABEL - FIGURE)
    }
}

struct Canvas {
    body: String,
    y: f64,
}

impl Canvas {
    fn new() -> Self {
        Self { body: String::new(), y: 8.0 }
    }

    fn text(&mut self, x: f64, attributes: &str, text: &str) {
        let baseline = self.y + 14.0;
        let _ = writeln!(
            self.body,
            "<text x=\"{x:.0}\" y=\"{baseline:.0}\" {attributes}>{text}</text>"
        );
    }

    fn heading(&mut self, text: &str) {
        self.text(4.0, "font-size=\"15\" font-weight=\"bold\"", text);
        self.y += LINE;
    }

    fn note(&mut self, text: &str) {
        self.text(4.0, "", text);
        self.y += LINE;
    }

    fn panel(&mut self, title: &str) {
        self.y += LINE / 2.0;
        self.text(4.0, "font-weight=\"bold\"", title);
        self.y += LINE;
    }

    fn bar(&mut self, system: &System, length: f64, figure: &str) {
        let colour = match system.kind {
            Kind::Limit => LIMIT,
            Kind::Library if system.name == "little-raft" => OURS,
            Kind::Library => LIBRARY,
        };
        self.text(LABEL - 8.0, "text-anchor=\"end\"", system.name);
        let _ = writeln!(
            self.body,
            "<rect x=\"{LABEL}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"{:.0}\" rx=\"2\" \
             fill=\"{colour}\"/>",
            self.y + 2.0,
            LINE - 5.0
        );
        self.text(LABEL + length + 6.0, "", figure);
        self.y += LINE;
    }

    fn finish(self) -> String {
        let height = self.y + 8.0;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             width=\"{WIDTH}\" height=\"{height:.0}\" font-family=\"sans-serif\" \
             font-size=\"13\" fill=\"{TEXT}\">\n{}</svg>\n",
            self.body
        )
    }
}
