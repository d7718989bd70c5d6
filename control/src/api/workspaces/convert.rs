//! Converts between protobuf messages and the driver's values. Requests are validated, and each
//! error names the field that is invalid. The conversion of a snapshot to a message cannot fail.

use std::{collections::HashMap, ops::RangeInclusive, time::Duration};

use podling_core::{
    policy::{Policy, PolicyOverrides},
    policy_fields,
    workspace::{self, ResourceOverrides, Resources, UnreasonableResources},
};
use podling_proto::{
    agent::v1::ActivityState,
    control::v1::{
        self as wire, AgentConnection, AgentInfo, CreateWorkspaceRequest, Progress, State, Workspace,
        progress::Stage,
    },
    error::{Reason, WireError},
    v1::Verb,
};

use crate::{
    activity::ReportedActivity,
    driver::NewWorkspace,
    principal::Principal,
    progress,
    reasons::{self, same_names, timestamp},
    snapshot::{AgentAddress, AgentView, WorkspaceView},
    template::{Template, TemplateError, Templates},
};

const MAX_REQUEST_ID_CHARS: usize = 64;
/// Limits of a workspace's own environment: the number of variables, and the bytes of all names and
/// values together. The environment is stored, and is part of every claim.
const MAX_VARIABLES: usize = 64;
const MAX_VARIABLE_BYTES: usize = 16 * 1024;
/// Size of a volume, in bytes. The smallest is that of the CRD.
const STORAGE_RANGE: RangeInclusive<u64> = 1 << 20..=1 << 50;
/// Range of the durations in a policy.
const DURATION_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 60 * 60);

/// The workspaces that a request covers.
#[derive(Debug, Clone)]
pub(super) struct WorkspaceScope {
    caller: Principal,
    all: bool,
}

impl WorkspaceScope {
    /// Covers the caller's own workspaces. With `all_owners`, covers the workspaces of all owners
    /// and requires the verb `admin`.
    pub(super) fn parse(caller: Principal, all_owners: bool) -> Result<Self, WireError> {
        if all_owners {
            caller.may(Verb::Admin)?;
        }
        Ok(Self { caller, all: all_owners })
    }

    /// Covers all workspaces that the caller may see.
    pub(super) fn visible(caller: Principal) -> Self {
        Self { caller, all: true }
    }

    pub(super) fn sees(&self, view: &WorkspaceView) -> bool {
        !view.is_gone() && self.caller.sees(view) && (self.all || view.spec.owner == self.caller.owner)
    }
}

/// Validates a create request and merges it with its template.
pub(super) fn create(
    caller: &Principal,
    request: CreateWorkspaceRequest,
    templates: &Templates,
) -> Result<NewWorkspace, WireError> {
    let owner = match request.owner.as_str() {
        "" => caller.owner.clone(),
        text => {
            let owner = text.parse().map_err(|e| WireError::bad_field("owner", e))?;
            if owner != caller.owner {
                caller.may(Verb::Admin)?;
            }
            owner
        }
    };
    let name = request.name.parse().map_err(|e| WireError::bad_field("name", e))?;
    check_request_id(&request.request_id)?;
    let (template, content) = templates.get(&request.template)?;
    let mut env = content.env.clone();
    env.extend(variables(request.env)?);
    Ok(NewWorkspace {
        owner,
        name,
        template: template.to_owned(),
        command: content.command.clone(),
        env,
        policy: requested_policy(&content.policy, &policy_overrides(request.policy.unwrap_or_default())?)?,
        resources: requested_resources(content.resources, request.resources.unwrap_or_default())?,
        storage_bytes: storage(request.storage_bytes, content)?,
        source: None,
        request_id: request.request_id,
        reconnect: request.reconnect,
    })
}

pub(in crate::api) fn check_request_id(id: &str) -> Result<(), WireError> {
    match id.chars().count() {
        0..=MAX_REQUEST_ID_CHARS => Ok(()),
        _ => Err(WireError::bad_field(
            "request_id",
            format!("must be at most {MAX_REQUEST_ID_CHARS} characters"),
        )),
    }
}

/// Validates the fields of a policy. Absent fields stay unset.
pub(super) fn policy_overrides(policy: wire::Policy) -> Result<PolicyOverrides, WireError> {
    let span = |field: &'static str, given: Option<prost_types::Duration>| {
        let Some(given) = given else { return Ok(None) };
        let span = Duration::try_from(given).ok().filter(|span| DURATION_RANGE.contains(span));
        span.map(Some).ok_or_else(|| WireError::bad_field(field, "must be 1 s to 365 days"))
    };
    // 0 is not a valid duration. In a request it removes the limit.
    let no_end = policy.max_awake.is_some_and(|given| (given.seconds, given.nanos) == (0, 0));
    let max_awake = match no_end {
        true => Some(None),
        false => span("policy.max_awake", policy.max_awake)?.map(Some),
    };
    macro_rules! overrides {
        ($($(#[$doc:meta])* $field:ident = $default:expr;)*) => {
            PolicyOverrides {
                $($field: span(concat!("policy.", stringify!($field)), policy.$field)?,)*
                max_awake,
            }
        };
    }
    Ok(policy_fields!(overrides))
}

/// Validates the requested size of the volume. `None` is the template's.
fn storage(requested: u64, template: &Template) -> Result<Option<u64>, WireError> {
    match requested {
        0 => Ok(None),
        _ if template.storage_bytes.is_none() => Err(WireError::bad_field(
            "storage_bytes",
            "must be 0, because the workspaces of this control plane have no volumes",
        )),
        _ if !STORAGE_RANGE.contains(&requested) => {
            Err(WireError::bad_field("storage_bytes", "must be 1 MiB to 1 PiB"))
        }
        _ => Ok(Some(requested)),
    }
}

/// Returns the resources of a request. A value of 0 keeps the current one.
pub(super) fn resource_overrides(requested: wire::Resources) -> ResourceOverrides {
    let own = |value: u64| Some(value).filter(|value| *value != 0);
    ResourceOverrides { cpu_millis: own(requested.cpu_millis), memory_bytes: own(requested.memory_bytes) }
}

/// Validates requested resources, and applies them to the current ones.
pub(super) fn requested_resources(
    current: Resources,
    requested: wire::Resources,
) -> Result<Resources, WireError> {
    let resources = current.with(resource_overrides(requested));
    match resources.check() {
        Err(error @ UnreasonableResources::Cpu) if requested.cpu_millis != 0 => {
            Err(WireError::bad_field("resources.cpu_millis", error))
        }
        Err(error @ UnreasonableResources::Memory) if requested.memory_bytes != 0 => {
            Err(WireError::bad_field("resources.memory_bytes", error))
        }
        _ => Ok(resources),
    }
}

/// Applies the policy of a request to the current one.
pub(super) fn requested_policy(current: &Policy, own: &PolicyOverrides) -> Result<Policy, WireError> {
    current.requested(own).map_err(|error| WireError::bad_field("policy.warning", error))
}

fn variables(env: HashMap<String, String>) -> Result<HashMap<String, String>, WireError> {
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if env.len() > MAX_VARIABLES || bytes > MAX_VARIABLE_BYTES {
        return Err(WireError::bad_field(
            "env",
            format!("must be at most {MAX_VARIABLES} variables of {MAX_VARIABLE_BYTES} bytes together"),
        ));
    }
    let bad_one = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    match env.iter().find(bad_one) {
        // The error names the variable without its value, which may be a secret.
        Some((name, _)) => Err(WireError::bad_field(
            "env",
            format!("{name:?} is not a valid variable name, or its value contains a NUL"),
        )),
        None => Ok(env),
    }
}

impl From<TemplateError> for WireError {
    fn from(error: TemplateError) -> Self {
        let message = error.to_string();
        match error {
            TemplateError::NotFound { name, .. } | TemplateError::NoDefault { name, .. } => {
                Self::new(Reason::TemplateNotFound, message).with("id", name)
            }
            TemplateError::Invalid { name, invalid } => {
                Self::new(Reason::TemplateInvalid, message).with("id", name).with("cause", invalid)
            }
            TemplateError::Directory { source, .. } => {
                let message = format!("{message}: {source}; make it readable and try again");
                Self::new(Reason::TemplateInvalid, message).with("cause", source)
            }
        }
    }
}

pub(in crate::api) fn workspace(view: &WorkspaceView) -> Workspace {
    Workspace {
        id: view.spec.id.to_string(),
        name: view.spec.name.to_string(),
        owner: view.spec.owner.to_string(),
        template: view.spec.template.clone(),
        policy: Some(reasons::policy(&view.spec.policy)),
        state: state(view.state).into(),
        reason: Some(reasons::state_reason(&view.reason)),
        since: Some(timestamp(view.since)),
        created: Some(timestamp(view.spec.created)),
        connection: agent_connection(view.connection).into(),
        activity: view.activity.as_deref().map(activity),
        agent: view.agent.as_deref().map(agent),
        next: view.next.map(|(at, step)| reasons::next_step(at, step)),
        version: view.version,
        restarts: view.restarts,
        queue_position: view.queue_position.map_or(0, |position| u32::try_from(position).unwrap_or(u32::MAX)),
        requested: Some(resources(view.spec.resources)),
        allocated: view.allocated.map(resources),
        actual: view.actual.map(resources),
        waiting: view.waits.as_ref().map(reasons::waiting),
        deleted: view.is_gone(),
        deleting: view.spec.desired_state.is_gone() && !view.is_gone(),
        progress: view.progress.map(progress),
    }
}

fn activity(activity: &ReportedActivity) -> ActivityState {
    ActivityState {
        level: activity.level.into(),
        counted_idle: reasons::span(activity.counted_idle),
        at: activity.at.map(timestamp),
        ..activity.details.clone()
    }
}

fn resources(resources: Resources) -> wire::Resources {
    wire::Resources { cpu_millis: resources.cpu_millis, memory_bytes: resources.memory_bytes }
}

fn progress(progress: progress::TransferProgress) -> Progress {
    use crate::progress::TransferStage;
    let stage = same_names!(progress.stage, TransferStage => Stage: Archiving, Proving, Downloading,
        Extracting);
    Progress {
        stage: stage.into(),
        entries: progress.entries,
        total_entries: progress.total_entries.unwrap_or(0),
        bytes: progress.bytes,
        total_bytes: progress.total_bytes.unwrap_or(0),
    }
}

fn agent(agent: &AgentView) -> AgentInfo {
    AgentInfo {
        boot_id: agent.boot_id.clone(),
        epoch: agent.epoch,
        version: agent.version.clone(),
        key_fingerprint: agent.fingerprint.to_string(),
        capabilities: agent.capabilities.clone(),
        address: match &agent.address {
            AgentAddress::Unix(path) => format!("unix:{}", path.display()),
            AgentAddress::Tcp(address) => format!("https://{address}"),
        },
    }
}

pub(in crate::api) fn state(state: workspace::State) -> State {
    use workspace::State as Core;
    same_names!(state, Core => State: Queued, Starting, Awake, FallingAsleep, Asleep, Archiving, Archived,
        Deleting, Failed)
}

fn agent_connection(connection: workspace::AgentConnection) -> AgentConnection {
    use workspace::AgentConnection as Core;
    same_names!(connection, Core => AgentConnection: Connected, Unknown)
}

#[cfg(test)]
mod tests {
    use podling_proto::{
        json::{
            self,
            schema::{RpcSchema, SchemaSet},
        },
        verb::Verbs,
    };
    use serde_json::json;

    use super::*;

    fn caller(verbs: Verbs) -> Principal {
        Principal { owner: "me".parse().unwrap(), verbs, workspaces: None, expires: None }
    }

    fn parsed(request: CreateWorkspaceRequest) -> Result<NewWorkspace, WireError> {
        let templates = Templates::load(&[], "shell").unwrap();
        create(&caller(Verbs::only([Verb::Lifecycle])), request, &templates)
    }

    fn valid_request() -> CreateWorkspaceRequest {
        CreateWorkspaceRequest { name: "demo".into(), ..Default::default() }
    }

    #[test]
    fn create_merges_template_and_request() {
        let span = prost_types::Duration { seconds: 5, nanos: 0 };
        let request = CreateWorkspaceRequest {
            template: "python".into(),
            policy: Some(wire::Policy { idle_timeout: Some(span), ..Default::default() }),
            env: [("KEY".to_owned(), "value".to_owned())].into(),
            ..valid_request()
        };
        let new = parsed(request).unwrap();
        assert_eq!((new.template.as_str(), new.owner.as_str()), ("python", "me"));
        assert_eq!(new.policy.idle_timeout, Duration::from_secs(5));
        assert_eq!(new.policy.presence_cap, Duration::from_secs(60 * 60));
        assert_eq!(new.resources, Resources::default());
        let large = wire::Resources { cpu_millis: 2500, memory_bytes: 0 };
        let large = parsed(CreateWorkspaceRequest { resources: Some(large), ..valid_request() }).unwrap();
        assert_eq!(large.resources, Resources { cpu_millis: 2500, ..Resources::default() });
        assert!(new.env.contains_key("PYTHONUNBUFFERED") && new.env["KEY"] == "value");
        assert_eq!(parsed(valid_request()).unwrap().template, "shell", "the default");
    }

    #[test]
    fn volume_size_needs_a_backend_with_volumes() {
        let templates = Templates::load(&[], "shell").unwrap();
        let (_, shell) = templates.get("shell").unwrap();
        let on_volume = Template { storage_bytes: Some(10 << 30), ..Template::clone(shell) };
        assert_eq!(storage(0, &on_volume).unwrap(), None, "the template's");
        assert_eq!(storage(20 << 30, &on_volume).unwrap(), Some(20 << 30));
        assert!(storage(1, &on_volume).unwrap_err().message().contains("1 MiB"));
        assert!(storage(20 << 30, shell).unwrap_err().message().contains("no volumes"));
    }

    #[test]
    fn invalid_request_error_names_field() {
        let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let policy = |idle_timeout| Some(wire::Policy { idle_timeout, ..Default::default() });
        let warned =
            |idle_timeout, warning| Some(wire::Policy { idle_timeout, warning, ..Default::default() });
        for (field, request) in [
            ("name", CreateWorkspaceRequest { name: "No Name".into(), ..valid_request() }),
            ("owner", CreateWorkspaceRequest { owner: "a/b".into(), ..valid_request() }),
            ("request_id", CreateWorkspaceRequest { request_id: "x".repeat(65), ..valid_request() }),
            ("policy.idle_timeout", CreateWorkspaceRequest { policy: policy(span(0)), ..valid_request() }),
            ("policy.idle_timeout", CreateWorkspaceRequest { policy: policy(span(-1)), ..valid_request() }),
            (
                "policy.idle_timeout",
                CreateWorkspaceRequest { policy: policy(span(i64::MAX)), ..valid_request() },
            ),
            (
                "policy.warning",
                CreateWorkspaceRequest { policy: warned(span(300), span(240)), ..valid_request() },
            ),
            ("policy.warning", CreateWorkspaceRequest { policy: warned(None, span(600)), ..valid_request() }),
            ("env", CreateWorkspaceRequest { env: [("A=B".into(), "".into())].into(), ..valid_request() }),
            (
                "resources.cpu_millis",
                CreateWorkspaceRequest {
                    resources: Some(wire::Resources { cpu_millis: u64::MAX, memory_bytes: 0 }),
                    ..valid_request()
                },
            ),
            ("storage_bytes", CreateWorkspaceRequest { storage_bytes: 1 << 30, ..valid_request() }),
            (
                "env",
                CreateWorkspaceRequest { env: [("A".into(), "x".repeat(20_000))].into(), ..valid_request() },
            ),
        ] {
            let error = parsed(request).unwrap_err();
            assert_eq!(error.reason(), Reason::BadField);
            assert!(error.message().starts_with(field), "{}", error.message());
        }
        let unknown =
            parsed(CreateWorkspaceRequest { template: "pyton".into(), ..valid_request() }).unwrap_err();
        assert_eq!(unknown.reason(), Reason::TemplateNotFound);
        let foreign = parsed(CreateWorkspaceRequest { owner: "you".into(), ..valid_request() }).unwrap_err();
        assert_eq!(foreign.reason(), Reason::VerbMissing, "only admin may act for another owner");
    }

    /// Returns name, minimum and maximum of each field of a message in requests, as its schema says.
    fn ranges(message: &str) -> Vec<(String, u64, u64)> {
        let mut schemas = SchemaSet::default();
        let create = RpcSchema::of_request::<CreateWorkspaceRequest>().unwrap();
        schemas.request(&create, &[]);
        let schemas = schemas.into_map();
        let fields = schemas[message]["properties"].as_object().unwrap();
        let range = |(name, schema): (&String, &serde_json::Value)| {
            let bound =
                |bound: &str| schema[bound].as_u64().unwrap_or_else(|| panic!("{name} has no {bound}"));
            (name.clone(), bound("minimum"), bound("maximum"))
        };
        fields.iter().map(range).collect()
    }

    #[test]
    fn ranges_of_the_schema_are_those_that_are_checked() {
        for (name, minimum, maximum) in ranges("PolicyInput") {
            let is_valid =
                |seconds: f64| policy_overrides(json::from_json(&json!({ &name: seconds })).unwrap()).is_ok();
            assert!(is_valid(minimum as f64) && is_valid(maximum as f64), "{name}");
            assert!(!is_valid(maximum as f64 + 0.5) && !is_valid(0.5), "{name}");
        }
        for (name, minimum, maximum) in ranges("ResourcesInput") {
            let is_valid = |n: u64| {
                let given = json::from_json(&json!({ &name: n })).unwrap();
                requested_resources(Resources::default(), given).is_ok()
            };
            assert!(is_valid(minimum) && is_valid(maximum) && !is_valid(maximum + 1), "{name}");
            assert!(minimum == 1 || !is_valid(minimum - 1), "{name}");
        }
    }

    #[test]
    fn resize_to_nonsense_names_field() {
        let current = Resources::default();
        let resize = |cpu_millis, memory_bytes| {
            requested_resources(current, wire::Resources { cpu_millis, memory_bytes })
        };
        assert_eq!(resize(0, 0).unwrap(), current, "absent values stay");
        assert_eq!(resize(2000, 0).unwrap(), Resources { cpu_millis: 2000, ..current });
        for (cpu_millis, memory_bytes, field) in [
            (1_000_001, 0, "resources.cpu_millis"),
            (1_000_000_000, 0, "resources.cpu_millis"),
            (0, 1, "resources.memory_bytes"),
            (0, (64 << 40) + 1, "resources.memory_bytes"),
        ] {
            let refused = resize(cpu_millis, memory_bytes).unwrap_err();
            assert_eq!(refused.reason(), Reason::BadField);
            assert!(refused.message().starts_with(field), "{}", refused.message());
        }
        let small = Resources { memory_bytes: 1, ..current };
        let resized = requested_resources(small, wire::Resources { cpu_millis: 500, memory_bytes: 0 });
        assert!(resized.is_ok(), "an earlier value does not prevent the change of another one");
    }
}
