//! Compiles the protocol between nodes, without a `protoc` of the system.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/kv.proto");
    let files = protox::compile(["proto/kv.proto"], ["proto"])?;
    // Payloads are shared with what was received rather than copied out of it.
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
