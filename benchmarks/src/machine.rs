//! What the figures were taken on, and with which versions.

use std::fs;

use serde::Serialize;

use crate::systems;

#[derive(Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    pub compiler: &'static str,
    /// The load average when the run began: above zero, somebody else was working too.
    pub load: String,
    pub versions: Vec<(String, String)>,
}

impl Machine {
    pub fn examine() -> Self {
        Self {
            processor: processor(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: first_line("/proc/sys/kernel/osrelease"),
            compiler: env!("COMPILER_VERSION"),
            load: first_line("/proc/loadavg").split(' ').take(1).collect(),
            versions: versions(),
        }
    }

    pub fn describe(&self) -> String {
        let versions: Vec<String> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!(
            "{}, {} cores, Linux {}, {}, load {} at the start. {}.",
            self.processor,
            self.cores,
            self.kernel,
            self.compiler,
            self.load,
            versions.join(", ")
        )
    }
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split(':').nth(1));
    name.map_or("unknown processor".into(), |name| name.trim().to_string())
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_string()
}

/// The versions of the systems' packages, from the lock file that the program was built with.
fn versions() -> Vec<(String, String)> {
    let mut packages: Vec<&str> = systems::all().iter().filter_map(|it| it.package).collect();
    packages.dedup();
    let locked = include_str!("../Cargo.lock");
    let mut versions = Vec::new();
    for package in packages {
        let marker = format!("name = \"{package}\"\nversion = \"");
        for after in locked.split(&marker).skip(1) {
            let version = after.split('"').next().unwrap_or_default();
            versions.push((package.to_string(), version.to_string()));
        }
    }
    versions
}
