//! Remembers which compiler built the benchmarks, because the figures depend on it.

use std::process::Command;

fn main() {
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(compiler)
        .arg("--version")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string())
        .unwrap_or_else(|error| format!("unknown ({error})"));
    println!("cargo:rustc-env=COMPILER_VERSION={version}");
    println!("cargo:rerun-if-changed=build.rs");
}
