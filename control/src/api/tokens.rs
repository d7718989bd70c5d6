//! The Tokens service. It translates requests for [`ControlIdentity`].

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use podling_core::id::Owner;
use podling_proto::{
    control::v1::{
        CreateTokenRequest, CreateTokenResponse, DescribeTokenRequest, DescribeTokenResponse, TokenInfo,
        tokens_server::Tokens,
    },
    error::WireError,
    verb::Verbs,
};
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use super::caller;
use crate::{
    identity::{ControlIdentity, MAX_TTL, TokenGrant},
    principal::Principal,
    snapshot::SnapshotReceiver,
};

/// Lifetime of a token if the request sets none.
const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);
const MIN_TTL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct TokensService {
    identity: Arc<ControlIdentity>,
    snapshots: SnapshotReceiver,
}

impl TokensService {
    /// Creates the service. It looks up names of workspaces in `snapshots`.
    pub fn new(identity: Arc<ControlIdentity>, snapshots: SnapshotReceiver) -> Self {
        Self { identity, snapshots }
    }

    fn grant(&self, caller: &Principal, request: &CreateTokenRequest) -> Result<TokenGrant, WireError> {
        let verbs = Verbs::try_from(request.verbs.clone())
            .map_err(|unknown| WireError::bad_field("verbs", unknown))?;
        if verbs.is_empty() {
            return Err(WireError::bad_field("verbs", "must contain at least one verb"));
        }
        let owner = match request.owner.as_str() {
            "" => None,
            owner => Some(owner.parse::<Owner>().map_err(|e| WireError::bad_field("owner", e))?),
        };
        let scope = owner.as_ref().unwrap_or(&caller.owner);
        let snapshot = self.snapshots.borrow();
        let workspaces = request
            .workspaces
            .iter()
            .map(|text| Ok(caller.find_named(&snapshot, scope, text)?.spec.id.clone()))
            .collect::<Result<BTreeSet<_>, WireError>>()?;
        drop(snapshot);
        let agent = match (request.for_agent, workspaces.len()) {
            (false, _) => None,
            (true, 1) => workspaces.first().cloned(),
            (true, _) => {
                return Err(WireError::bad_field(
                    "workspaces",
                    "must be exactly one in a token for an agent",
                ));
            }
        };
        let workspaces = (!workspaces.is_empty()).then_some(workspaces);
        Ok(TokenGrant { verbs, workspaces, owner, ttl: ttl(request)?, agent })
    }
}

#[tonic::async_trait]
impl Tokens for TokensService {
    async fn create(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let minted = self.identity.mint(&caller, self.grant(&caller, &request)?)?;
        let info = Some(info(&minted.caller, request.for_agent));
        Ok(Response::new(CreateTokenResponse { token: minted.token, info }))
    }

    async fn describe(
        &self,
        request: Request<DescribeTokenRequest>,
    ) -> Result<Response<DescribeTokenResponse>, Status> {
        let info = Some(info(&caller(&request)?, false));
        Ok(Response::new(DescribeTokenResponse { info }))
    }
}

fn ttl(request: &CreateTokenRequest) -> Result<Duration, WireError> {
    let Some(ttl) = request.ttl else { return Ok(DEFAULT_TTL) };
    let ttl = Duration::try_from(ttl).ok().filter(|ttl| (MIN_TTL..=MAX_TTL).contains(ttl));
    ttl.ok_or_else(|| WireError::bad_field("ttl", "must be 1 s to 30 days"))
}

fn info(caller: &Principal, for_agent: bool) -> TokenInfo {
    TokenInfo {
        owner: caller.owner.to_string(),
        verbs: caller.verbs.names(),
        workspaces: caller.workspaces.iter().flatten().map(ToString::to_string).collect(),
        expires: caller
            .expires
            .map(|at| Timestamp { seconds: i64::try_from(at).unwrap_or(i64::MAX), nanos: 0 }),
        for_agent,
    }
}
