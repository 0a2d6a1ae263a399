//! Tables for people, a file for programs, and the pictures.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::client::Measurement;
use crate::machine::Machine;
use crate::options::Run;
use crate::picture;
use crate::scenario::{OUTSTANDING, PAYLOADS, PLACES, Payload, Place, Scenario};
use crate::systems::{self, Kind, REFERENCE, System};

#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    runs: usize,
    seconds: f64,
    results: Vec<Outcome>,
}

/// All runs of one system in one scenario.
#[derive(Serialize)]
pub struct Outcome {
    scenario: Scenario,
    system: &'static str,
    kind: Kind,
    median: Option<Figures>,
    states_equal: bool,
    runs: Vec<Measurement>,
    failures: Vec<String>,
}

/// The medians, each of its own figure.
#[derive(Clone, Serialize)]
pub struct Figures {
    pub per_second: f64,
    pub processor_seconds_per_million: f64,
    pub latency_median: f64,
    pub latency_99th: f64,
    pub peak_mebibytes: f64,
}

/// A figure that a table or a picture shows.
#[derive(Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    pub value: fn(&Figures) -> f64,
    pub text: fn(f64) -> String,
    pub more_is_better: bool,
}

pub const RATE: Column = Column {
    title: "applied at the leader per second",
    value: |figures| figures.per_second,
    text: |value| with_unit(value, &[(1e6, "M"), (1e3, "k")]),
    more_is_better: true,
};
pub const COST: Column = Column {
    title: "CPU-seconds per million commands",
    value: |figures| figures.processor_seconds_per_million,
    text: |value| format!("{value:.4}"),
    more_is_better: false,
};
pub const LATENCY: Column = Column {
    title: "microseconds from proposal to applied, median",
    value: |figures| figures.latency_median,
    text: |value| format!("{value:.1}"),
    more_is_better: false,
};
const LATENCY_99TH: Column = Column {
    title: "microseconds from proposal to applied, 99th percentile",
    value: |figures| figures.latency_99th,
    text: |value| format!("{value:.1}"),
    more_is_better: false,
};
const MEMORY: Column = Column {
    title: "most memory held, MiB",
    value: |figures| figures.peak_mebibytes,
    text: |value| format!("{value:.0}"),
    more_is_better: false,
};

impl Report {
    pub fn new(run: &Run) -> Self {
        let machine = Machine::examine();
        Self { machine, runs: run.runs, seconds: run.seconds, results: Vec::new() }
    }

    pub fn add(
        &mut self,
        scenario: Scenario,
        system: &System,
        outcome: Result<Measurement, String>,
    ) {
        let known = |it: &Outcome| it.scenario == scenario && it.system == system.name;
        let position = self.results.iter().position(known).unwrap_or_else(|| {
            self.results.push(Outcome::new(scenario, system));
            self.results.len() - 1
        });
        self.results[position].add(outcome);
    }

    pub fn all_equal(&self) -> bool {
        self.results.iter().all(|outcome| outcome.states_equal)
    }

    /// The median of a figure, if this system was measured in this scenario.
    pub fn median(&self, scenario: Scenario, system: &str, column: Column) -> Option<f64> {
        let is_it = |it: &&Outcome| it.scenario == scenario && it.system == system;
        let figures = self.results.iter().find(is_it)?.median.as_ref()?;
        Some((column.value)(figures))
    }

    /// The best of the libraries, without the limits.
    fn best(&self, scenario: Scenario, column: Column) -> Option<f64> {
        let libraries = systems::all().into_iter().filter(|system| system.kind == Kind::Library);
        let values = libraries.filter_map(|system| self.median(scenario, system.name, column));
        if column.more_is_better { values.reduce(f64::max) } else { values.reduce(f64::min) }
    }

    /// The systems with a figure for this place and payload, in the order they are listed.
    pub fn systems(&self, place: Place, payload: Payload) -> Vec<System> {
        let measured = |system: &System| {
            self.results.iter().any(|it| {
                it.system == system.name
                    && it.scenario.place == place
                    && it.scenario.payload == payload
                    && it.median.is_some()
            })
        };
        systems::all().into_iter().filter(measured).collect()
    }

    pub fn text(&self) -> String {
        let mut text = format!("# Measured\n\n{}\n\n", self.machine.describe());
        let _ = writeln!(
            text,
            "Medians; measured {} times, for {} s each. In parentheses: how many times the best \
             library's figure, and how many times that of `{REFERENCE}`. `w` is how many commands \
             are outstanding.",
            self.runs, self.seconds
        );
        for place in PLACES {
            for payload in PAYLOADS {
                self.write_section(&mut text, place, payload);
            }
        }
        self.write_checks(&mut text);
        text
    }

    fn write_section(&self, text: &mut String, place: Place, payload: Payload) {
        if self.systems(place, payload).is_empty() {
            return;
        }
        let _ = write!(text, "\n## {}: {}\n", payload.describe(), place.describe());
        let columns: &[Column] = match place {
            // Nothing runs at the same time there: a rate or a latency would repeat the cost.
            Place::AllInOne => &[COST, MEMORY],
            _ => &[RATE, LATENCY, LATENCY_99TH, COST, MEMORY],
        };
        for column in columns {
            self.write_table(text, place, payload, *column);
        }
    }

    fn write_table(&self, text: &mut String, place: Place, payload: Payload, column: Column) {
        let _ = write!(text, "\n| {} |", column.title);
        for outstanding in OUTSTANDING {
            let _ = write!(text, " w{outstanding} |");
        }
        let _ = writeln!(text, "\n|---|{}", "---:|".repeat(OUTSTANDING.len()));
        for system in self.systems(place, payload) {
            let _ = write!(text, "| {} |", system.name);
            for outstanding in OUTSTANDING {
                let scenario = Scenario { place, payload, outstanding };
                let _ = write!(text, " {} |", self.cell(scenario, system.name, column));
            }
            text.push('\n');
        }
    }

    fn cell(&self, scenario: Scenario, system: &str, column: Column) -> String {
        let Some(value) = self.median(scenario, system, column) else { return String::new() };
        let compared = [self.best(scenario, column), self.median(scenario, REFERENCE, column)]
            .map(|other| other.map_or("-".into(), |other| ratio(value / other)));
        format!("{} ({})", (column.text)(value), compared.join(", "))
    }

    fn write_checks(&self, text: &mut String) {
        text.push_str("\n## State machines\n\n");
        let unequal: Vec<&Outcome> = self.results.iter().filter(|it| !it.states_equal).collect();
        if unequal.is_empty() {
            text.push_str("All replicas' state machines were equal at the end of every run.\n");
        }
        for outcome in unequal {
            let _ = writeln!(text, "- **not equal**: {}/{}", outcome.scenario, outcome.system);
        }
        for outcome in &self.results {
            for failure in &outcome.failures {
                let name = format!("{}/{}", outcome.scenario, outcome.system);
                let _ = writeln!(text, "- {name} gave no figure in one run: {failure}");
            }
        }
    }

    /// Writes into the folder `results` beside the sources, wherever the command was started.
    pub fn write(&self) -> Result<(), String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        let figures = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        let mut files = vec![
            ("latest.json".to_string(), figures + "\n"),
            ("latest.md".to_string(), self.text()),
        ];
        files.extend(picture::all(self));
        fs::create_dir_all(&folder)
            .map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))?;
        for (name, content) in files {
            let path = folder.join(name);
            fs::write(&path, content)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(())
    }
}

impl Outcome {
    fn new(scenario: Scenario, system: &System) -> Self {
        Self {
            scenario,
            system: system.name,
            kind: system.kind,
            median: None,
            states_equal: true,
            runs: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn add(&mut self, outcome: Result<Measurement, String>) {
        match outcome {
            Ok(measurement) => {
                self.states_equal &= measurement.states_equal();
                self.runs.push(measurement);
                self.median = Some(Figures::medians(&self.runs));
            }
            Err(message) => self.failures.push(message),
        }
    }
}

impl Figures {
    fn medians(runs: &[Measurement]) -> Self {
        let median = |value: fn(&Measurement) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[(values.len() - 1) / 2]
        };
        Self {
            per_second: median(Measurement::rate),
            processor_seconds_per_million: median(Measurement::processor_seconds_per_million),
            latency_median: median(|run| run.latency_median),
            latency_99th: median(|run| run.latency_99th),
            peak_mebibytes: median(|run| run.peak_mebibytes),
        }
    }
}

fn with_unit(value: f64, units: &[(f64, &str)]) -> String {
    let unit = units.iter().find(|(size, _)| value >= *size);
    let (size, name) = unit.copied().unwrap_or((1.0, ""));
    let value = value / size;
    let digits = if value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {name}").trim_end().to_string()
}

fn ratio(value: f64) -> String {
    if value >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
