//! Tests of the secret files, of the verification of tokens, and of minting: no token can create a
//! more powerful one.

use std::os::unix::fs::PermissionsExt;

use podling_proto::token::{Audience, TokenClaims, VerifyingKeys};
use proptest::prelude::*;

use super::*;

fn identity() -> (tempfile::TempDir, ControlIdentity, Principal) {
    let data = tempfile::tempdir().expect("directory");
    let identity = ControlIdentity::open(data.path(), MissingSecrets::Create).expect("identity");
    let text = std::fs::read_to_string(root_token_file(data.path())).expect("root token");
    let root = identity.authenticate(Some(text.trim())).expect("root");
    (data, identity, root)
}

fn grant(verbs: &str) -> TokenGrant {
    TokenGrant {
        verbs: verbs.parse().expect("verbs"),
        workspaces: None,
        owner: None,
        ttl: Duration::from_secs(60),
        agent: None,
    }
}

fn id(bits: u64) -> WorkspaceId {
    WorkspaceId::from_bits(bits)
}

#[test]
fn root_token_is_private_and_survives_restart() {
    let (data, _, root) = identity();
    assert_eq!((root.verbs, root.expires), (Verbs::admin(), None));
    let path = root_token_file(data.path());
    let mode = |p: &Path| std::fs::metadata(p).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(data.path())), (0o600, 0o700));
    for file in ["ca.key", "tls.key", "token-keys.json"] {
        assert_eq!(mode(&data.path().join("control").join(file)), 0o600, "{file}");
    }
    let text = std::fs::read_to_string(&path).expect("root token");
    assert!(text.starts_with("podling_"));
    let again = ControlIdentity::open(data.path(), MissingSecrets::Create).expect("second start");
    assert!(again.authenticate(Some(text.trim())).is_ok());
}

/// Reads all files of the identity.
fn read_files(data: &Path) -> Vec<(String, Vec<u8>)> {
    let names = ["root-token", "control/token-keys.json", "control/ca.key", "control/ca.pem"];
    names.map(|name| (name.to_owned(), std::fs::read(data.join(name)).unwrap_or_default())).into()
}

#[test]
fn lost_secret_is_created_only_on_request() {
    for lost in LONG_LIVED_SECRETS {
        let (data, _, _) = identity();
        let before = read_files(data.path());
        std::fs::remove_file(data.path().join(lost)).expect("removed");
        let error = ControlIdentity::open(data.path(), MissingSecrets::Refuse).expect_err(lost).to_string();
        let named = error.contains(&format!("{lost} is missing"));
        assert!(named && error.contains("--create-missing-secrets"), "{error}");
        let kept = |(name, content): &(String, Vec<u8>)| name == lost || !content.is_empty();
        assert!(read_files(data.path()).iter().all(kept), "nothing else changes");
        assert!(!data.path().join(lost).exists(), "{lost} is not created");

        ControlIdentity::open(data.path(), MissingSecrets::Create).expect("created on request");
        let after = read_files(data.path());
        let changed: Vec<_> =
            before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
        match lost {
            "control/ca.key" => assert_eq!(changed, ["control/ca.key", "control/ca.pem"]),
            _ => assert_eq!(changed, [lost]),
        }
        ControlIdentity::open(data.path(), MissingSecrets::Refuse).expect("all exist");
    }
}

#[test]
fn unusable_secret_is_refused_with_remedy() {
    for (name, content) in LONG_LIVED_SECRETS.into_iter().flat_map(|name| [(name, ""), (name, "garbage")]) {
        let (data, _, _) = identity();
        let path = data.path().join(name);
        secret_file::write(&path, content.as_bytes()).expect("damaged");
        let error = ControlIdentity::open(data.path(), MissingSecrets::Create).expect_err(name).to_string();
        for expected in [path.to_str().expect("a path"), "restore it", "--create-missing-secrets", "does not"]
        {
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert_eq!(error.contains("is empty"), content.is_empty(), "{error}");
        assert_eq!(std::fs::read(&path).expect("unchanged"), content.as_bytes());
    }
    // A key file without keys is not a first start: tokens were signed with those that are lost.
    let (data, _, _) = identity();
    secret_file::write(&data.path().join(TOKEN_KEYS), b"[]").expect("damaged");
    let error = ControlIdentity::open(data.path(), MissingSecrets::Create).expect_err("no keys").to_string();
    assert!(error.contains("does not contain token keys"), "{error}");
}

#[test]
fn readable_root_token_is_rejected_with_remedy() {
    let (data, _, _) = identity();
    let path = root_token_file(data.path());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = ControlIdentity::open(data.path(), MissingSecrets::Create).expect_err("exposed").to_string();
    assert!(error.contains("mode 644") && error.contains("chmod 600") && error.contains("delete"), "{error}");
}

#[test]
fn data_dir_of_another_user_is_rejected_unchanged() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can change a directory's owner");
    }
    let data = tempfile::tempdir().expect("directory");
    std::os::unix::fs::chown(data.path(), Some(4711), None).expect("chown");
    std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let error =
        ControlIdentity::open(data.path(), MissingSecrets::Create).expect_err("another's").to_string();
    assert!(error.contains("user 4711"), "{error}");
    let mode = std::fs::metadata(data.path()).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode, std::fs::read_dir(data.path()).expect("directory").count()), (0o755, 0));
}

#[test]
fn token_rejection_names_its_cause() {
    let (_data, identity, root) = identity();
    let reason = |token: Option<&str>| identity.authenticate(token).expect_err("refused").reason();
    assert_eq!(reason(None), Reason::TokenMissing);
    assert_eq!(reason(Some("")), Reason::TokenMissing);
    assert_eq!(reason(Some("podling_nonsense")), Reason::TokenInvalid);
    let (_other_data, other, other_root) = self::identity();
    let foreign = other.mint(&other_root, grant("read")).expect("token").token;
    assert_eq!(reason(Some(&foreign)), Reason::TokenInvalid, "a token of another control plane is invalid");
    let expired = identity.keys.current.sign(&TokenClaims {
        sub: "ada".into(),
        aud: Audience::Control,
        iat: 1000,
        exp: 1060,
        jti: "x".into(),
        verbs: Verbs::admin(),
        workspaces: None,
    });
    assert_eq!(reason(Some(&expired)), Reason::TokenExpired);
    let for_agent = TokenGrant { agent: Some(id(7)), ..grant("read") };
    let for_agent = identity.mint(&root, for_agent).expect("token").token;
    assert_eq!(reason(Some(&for_agent)), Reason::TokenForeign);
}

#[test]
fn child_token_never_exceeds_its_parent() {
    let (_data, identity, root) = identity();
    let narrow = TokenGrant {
        workspaces: Some([id(1), id(2)].into()),
        owner: Some("ada".parse().expect("owner")),
        ..grant("token,read,files-read")
    };
    let ada = identity.mint(&root, narrow).expect("token");
    let ada = identity.authenticate(Some(&ada.token)).expect("valid");
    assert_eq!(ada.owner.as_str(), "ada");
    let refused = |grant| identity.mint(&ada, grant).expect_err("wider").reason();
    assert_eq!(refused(grant("files-write")), Reason::VerbMissing);
    assert_eq!(refused(grant("admin")), Reason::VerbMissing);
    assert_eq!(
        refused(TokenGrant { workspaces: Some([id(3)].into()), ..grant("read") }),
        Reason::WorkspaceDenied
    );
    let as_bob = TokenGrant { owner: Some("bob".parse().expect("owner")), ..grant("read") };
    assert_eq!(refused(as_bob), Reason::VerbMissing);
    let child = identity.mint(&ada, TokenGrant { ttl: MAX_TTL, ..grant("read") }).expect("token").caller;
    assert_eq!(child.workspaces, ada.workspaces, "the child has its parent's restriction");
    assert!(child.expires <= ada.expires, "the child expires no later than its parent");
    let without_token_verb =
        identity.authenticate(Some(&identity.mint(&root, grant("read")).expect("token").token));
    let error = identity.mint(&without_token_verb.expect("valid"), grant("read")).expect_err("no verb");
    assert_eq!(error.reason(), Reason::VerbMissing);
}

#[test]
fn agent_token_is_bound_to_agent_and_cached() {
    let (_data, identity, root) = identity();
    let verbs: Verbs = "terminal".parse().expect("verbs");
    let first = identity.agent_token(&id(1), &root.owner, &verbs);
    assert_eq!(identity.agent_token(&id(1), &root.owner, &verbs), first);
    assert_ne!(identity.agent_token(&id(2), &root.owner, &verbs), first);
    let keys = VerifyingKeys::new(identity.token_keys().iter().map(|k| (k.id.clone(), k.public_key.clone())));
    let token = first.to_str().expect("ascii").strip_prefix("Bearer ").expect("bearer");
    let claims = keys.verify(token, &Audience::Agent(id(1).to_string()), now()).expect("valid at the agent");
    assert_eq!((claims.verbs, claims.exp - claims.iat), (verbs, 300));
    assert_eq!(identity.authenticate(Some(token)).expect_err("refused").reason(), Reason::TokenForeign);
}

fn any_verbs() -> impl Strategy<Value = Verbs> {
    let names = podling_proto::verb::ALL;
    prop::sample::subsequence(names, 1..names.len()).prop_map(|v| Verbs::only(v.into_iter().map(|(v, _)| v)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn minting_never_widens_a_token(
        first in any_verbs(), second in any_verbs(),
        own in prop::option::of(prop::collection::btree_set(0u64..4, 1..4)),
        requested in prop::option::of(prop::collection::btree_set(0u64..4, 1..4)),
    ) {
        let (_data, identity, root) = identity();
        let ids = |set: Option<BTreeSet<u64>>| set.map(|s| s.into_iter().map(id).collect::<BTreeSet<_>>());
        let parent = TokenGrant { verbs: first, workspaces: ids(own), ..grant("read") };
        let parent = identity.mint(&root, parent).expect("root may").caller;
        let child = TokenGrant { verbs: second, workspaces: ids(requested), ..grant("read") };
        if let Ok(MintedToken { caller: child, token }) = identity.mint(&parent, child) {
            prop_assert!(parent.verbs.include(&child.verbs));
            prop_assert!(child.expires <= parent.expires);
            if let Some(own) = &parent.workspaces {
                prop_assert!(child.workspaces.as_ref().is_some_and(|ids| ids.is_subset(own)));
            }
            let holder = identity.authenticate(Some(&token)).expect("valid");
            prop_assert_eq!(holder, child, "the token authenticates its own principal");
        }
    }
}

#[test]
fn token_survives_one_key_rotation_but_not_two() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("token-keys.json");
    let month = KEY_LIFETIME.as_secs();
    let claims = TokenClaims {
        sub: "ada".into(),
        aud: Audience::Control,
        iat: 0,
        exp: 4 * month,
        jti: "x".into(),
        verbs: Verbs::admin(),
        workspaces: None,
    };
    let token = SigningKeys::open(&path, 0).expect("first").current.sign(&claims);
    let valid = |now| {
        let keys = SigningKeys::open(&path, now).expect("keys");
        assert!(keys.public.len() <= MAX_KEYS);
        keys.verifying.verify(&token, &Audience::Control, now).is_ok()
    };
    assert!(valid(month - 1), "the signing key verifies its tokens");
    assert!(valid(month), "the previous key verifies its tokens");
    assert!(!valid(2 * month), "a removed key verifies no tokens");
}
