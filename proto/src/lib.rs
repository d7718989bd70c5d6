//! Podling's protocol: generated types, their JSON, the method table, stable errors and tokens. Also
//! code that both daemons share: the log format, names of signals, and readers of /proc.

/// Options and reasons shared by both daemons.
pub mod v1 {
    #![allow(unreachable_pub, clippy::all, missing_docs)]
    tonic::include_proto!("podling.v1");
}
pub mod activity;
pub mod agent {
    /// Version 1 of the agent's protocol.
    pub mod v1 {
        #![allow(unreachable_pub, clippy::all, missing_docs)]
        tonic::include_proto!("podling.agent.v1");
    }
}
pub mod control {
    /// Version 1 of the control plane's protocol.
    pub mod v1 {
        #![allow(unreachable_pub, clippy::all, missing_docs)]
        tonic::include_proto!("podling.control.v1");
    }
}
pub mod error;
pub mod error_response;
#[cfg(feature = "json")]
pub mod json;
pub mod log;
pub mod method;
pub mod procfs;
pub mod signal;
pub mod text;
pub mod token;
pub mod verb;

/// All .proto files with their comments, as a serialized `google.protobuf.FileDescriptorSet`, for
/// reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podling.bin"));

/// The .proto files of the services that an agent serves, like [`DESCRIPTOR_SET`]. Every image
/// contains the agent, so the agent does without the others.
pub const AGENT_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent.bin"));

/// Metadata keys that are part of the protocol.
pub mod metadata {
    /// Id of the workspace to whose agent the gateway forwards the call.
    pub const WORKSPACE: &str = "podling-workspace";
    /// With the value `never`, the call does not wake the workspace.
    pub const WAKE: &str = "podling-wake";
}
