//! Compiles the .proto files without protoc, and generates the method table from their options.

use std::{env, error::Error, fs, path::PathBuf};

use prost_reflect::{DescriptorPool, Value};
use tonic_prost_build::Config;

/// Files of the services that an agent serves.
const AGENT_FILES: &[&str] = &[
    "podling/v1/options.proto",
    "podling/v1/errors.proto",
    "podling/agent/v1/terminals.proto",
    "podling/agent/v1/processes.proto",
    "podling/agent/v1/files.proto",
    "podling/agent/v1/activity.proto",
    "podling/agent/v1/archives.proto",
];
const CONTROL_FILES: &[&str] = &[
    "podling/control/v1/workspaces.proto",
    "podling/control/v1/reasons.proto",
    "podling/control/v1/workspace_archives.proto",
    "podling/control/v1/tokens.proto",
    "podling/control/v1/agents.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=podling");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(AGENT_FILES)?;
    fs::write(out.join("agent.bin"), compiler.encode_file_descriptor_set())?;
    compiler.open_files(CONTROL_FILES)?;
    let encoded = compiler.encode_file_descriptor_set();
    fs::write(out.join("podling.bin"), &encoded)?;
    fs::write(out.join("methods.rs"), method_table(&DescriptorPool::decode(encoded.as_slice())?)?)?;
    let mut config = Config::new();
    // By their names, the JSON of messages finds their descriptors.
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".podling.agent.v1.Frame.data")
        .bytes(".podling.agent.v1.Input.data")
        .bytes(".podling.agent.v1.Output.data")
        .bytes(".podling.agent.v1.ReadFileResponse.data")
        .bytes(".podling.agent.v1.WriteFileRequest.data")
        .bytes(".podling.agent.v1.WriteChunkRequest.data")
        .bytes(".podling.agent.v1.WriteProcessRequest.data")
        .bytes(".podling.agent.v1.CreateArchiveResponse.data")
        .bytes(".podling.agent.v1.ExtractArchiveRequest.data")
        .type_attribute(".", "#[allow(missing_debug_implementations)]")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

/// Generates one `Method { … }` per line, sorted by path. Fails on a method without access options.
/// At run time the method would otherwise require the verb `admin`.
fn method_table(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let access =
        pool.get_extension_by_name("podling.v1.access").ok_or("podling.v1.access is not declared")?;
    let mut rows = Vec::new();
    for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let options = method.options();
        if !options.has_extension(&access) {
            return Err(format!("{} has no option podling.v1.access; add it", method.full_name()).into());
        }
        let value = options.get_extension(&access);
        let Value::Message(ref message) = *value else {
            return Err("podling.v1.access is not a message".into());
        };
        let verb = message.get_field_by_name("verb").and_then(|v| v.as_enum_number()).unwrap_or_default();
        let is_set = |name| message.get_field_by_name(name).and_then(|v| v.as_bool()).unwrap_or_default();
        let (wakes, in_use) = (is_set("wakes"), is_set("in_use"));
        if verb == 0 {
            return Err(format!("{} has no verb in its option podling.v1.access", method.full_name()).into());
        }
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let row = format!("path: {path:?}, verb: {verb}, wakes: {wakes}, in_use: {in_use}");
        rows.push(format!("    Method {{ {row} }},\n"));
    }
    rows.sort();
    Ok(format!("&[\n{}]\n", rows.concat()))
}
