//! The wire of Podling: generated types, the table of methods, stable errors, and tokens.
//!
//! Knows the protocol and nothing of how either side keeps it.

/// Options and reasons shared by both daemons.
pub mod v1 {
    #![allow(unreachable_pub, clippy::all, missing_docs)]
    tonic::include_proto!("podling.v1");
}
/// What an agent offers.
pub mod agent {
    /// Version 1 of the agent's protocol.
    pub mod v1 {
        #![allow(unreachable_pub, clippy::all, missing_docs)]
        tonic::include_proto!("podling.agent.v1");
    }
}
/// What the control plane offers.
pub mod control {
    /// Version 1 of the control plane's protocol.
    pub mod v1 {
        #![allow(unreachable_pub, clippy::all, missing_docs)]
        tonic::include_proto!("podling.control.v1");
    }
}
pub mod error;
pub mod method;
pub mod problem;
pub mod token;
pub mod verb;

/// Every .proto file with its comments, as a serialized `google.protobuf.FileDescriptorSet`: for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podling.bin"));

/// Metadata keys that are part of the protocol.
pub mod metadata {
    /// Which workspace's agent a call at the gateway is for.
    pub const WORKSPACE: &str = "podling-workspace";
    /// `never`: do not wake the workspace for this call.
    pub const WAKE: &str = "podling-wake";
}
