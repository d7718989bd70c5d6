//! Parses resources, and renders the allocated and the requested resources of a workspace as text
//! and JSON. Pure.

use indicatif::HumanBytes;
use podling_control::quantity;
use podling_proto::control::v1::{Resources, State, Workspace};
use serde::Serialize;

use crate::next_step::queue_position;

/// CPU and memory of a workspace, as `--json` prints them.
#[derive(Debug, Serialize)]
pub struct ResourcesJson {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// Renders the resources that the workspace has and those that it waits for, as a clause without
/// its subject: "has 1 core and 1.00 GiB".
pub fn describe(workspace: &Workspace) -> String {
    let requested = workspace.requested.unwrap_or_default();
    match &workspace.allocated {
        None if workspace.state() == State::Queued => {
            format!("waits until its owner's quota and the total capacity allow {}", amount(&requested))
        }
        None => format!("gets {} when it is awake", amount(&requested)),
        Some(allocated) if *allocated == requested => format!("has {}", amount(allocated)),
        Some(allocated) => {
            let position =
                queue_position(workspace).map(|position| format!(", {position}")).unwrap_or_default();
            format!("has {} and waits for {}{position}", amount(allocated), amount(&requested))
        }
    }
}

/// Parses the value of a flag `--cpu` into thousandths of a core.
pub fn parse_cores(text: &str) -> Result<u64, String> {
    quantity::cores(text).ok_or_else(|| format!("expected {}", quantity::CORES))
}

/// Parses the value of a flag `--memory` or `--storage` into bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).ok_or_else(|| format!("expected {}", quantity::BYTES))
}

fn amount(resources: &Resources) -> String {
    let cores = resources.cpu_millis as f64 / 1000.0;
    let word = if resources.cpu_millis == 1000 { "core" } else { "cores" };
    format!("{cores} {word} and {}", HumanBytes(resources.memory_bytes))
}

impl From<&Resources> for ResourcesJson {
    fn from(resources: &Resources) -> Self {
        Self { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_shows_allocated_and_requested_resources() {
        let resources = |cpu_millis| Some(Resources { cpu_millis, memory_bytes: 1 << 30 });
        let mut workspace = Workspace { requested: resources(1500), ..Workspace::default() };
        assert_eq!(describe(&workspace), "gets 1.5 cores and 1.00 GiB when it is awake");
        workspace.allocated = resources(1500);
        assert_eq!(describe(&workspace), "has 1.5 cores and 1.00 GiB");
        (workspace.allocated, workspace.queue_position) = (resources(1000), 2);
        assert_eq!(
            describe(&workspace),
            "has 1 core and 1.00 GiB and waits for 1.5 cores and 1.00 GiB, 2nd in the admission queue"
        );
    }
}
