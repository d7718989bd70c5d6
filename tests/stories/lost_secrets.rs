//! Loss of the control plane's long-lived secrets on one machine, and restores of a backup.

use std::{fs, process::Command};

use podling_proto::{
    control::v1::{CreateTokenRequest, ListWorkspacesRequest},
    error::Reason,
};
use podling_tests::{Client, Podling, refused, within};

/// Long-lived secrets in the data directory.
const SECRETS: [&str; 3] = ["root-token", "control/token-keys.json", "control/ca.key"];

/// Creates a token of the root owner that may read workspaces.
async fn user_token(podling: &Podling) -> String {
    let request = CreateTokenRequest { verbs: vec!["read".into()], ..Default::default() };
    within("Tokens.Create", podling.client().tokens().create(request))
        .await
        .expect("a token")
        .into_inner()
        .token
}

async fn is_accepted(podling: &Podling, token: &str) -> bool {
    let listed =
        Client::new(podling.url()).token(token).workspaces().list(ListWorkspacesRequest::default()).await;
    match listed {
        Ok(_) => true,
        Err(_) => {
            assert_eq!(refused(listed), Reason::TokenInvalid);
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_secret_stops_a_start_until_it_is_restored() {
    let mut podling = Podling::up().await;
    let ada = podling.workspace("ada").await;
    let agent = podling.agent_pid(&ada);
    let (root, token) = (podling.token().to_owned(), user_token(&podling).await);
    podling.kill_control();
    for name in SECRETS {
        let (lost, backup) = (podling.data().join(name), podling.dir().join("backup"));
        fs::rename(&lost, &backup).expect("moved");
        let printed = podling.failing_start().await;
        let says_what_to_do = printed.contains("restore") && printed.contains("--create-missing-secrets");
        assert!(printed.contains(&format!("{name} is missing")) && says_what_to_do, "{printed}");
        assert!(!lost.exists(), "no other secret takes its place");
        fs::rename(&backup, &lost).expect("restored");
    }
    // Without the database, the directories of workspaces show that the secrets are not the first.
    let (control, backup) = (podling.data().join("control"), podling.dir().join("backup"));
    fs::rename(&control, &backup).expect("moved");
    let printed = podling.failing_start().await;
    assert!(printed.contains("control/token-keys.json and control/ca.key are missing"), "{printed}");
    fs::remove_dir_all(&control).expect("removed");
    fs::rename(&backup, &control).expect("restored");

    podling.restart().await;
    podling.wait_until_awake(&ada).await;
    assert_eq!(podling.agent_pid(&ada), agent, "the agent runs on");
    assert!(podling.token() == root && is_accepted(&podling, &token).await);

    // On request, the start replaces what is missing, and nothing else.
    podling.kill_control();
    fs::remove_file(podling.data().join("control/token-keys.json")).expect("removed");
    podling.restart_with_argument("--create-missing-secrets").await;
    podling.wait_until_awake(&ada).await;
    assert_eq!(podling.agent_pid(&ada), agent, "the agent trusts the CA still");
    assert!(podling.token() == root && !is_accepted(&podling, &token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_of_the_data_directory_is_a_backup() {
    let mut podling = Podling::up().await;
    let cli = podling.cli();
    let ada = podling.workspace("ada").await;
    podling.client().for_workspace(&ada.id).sh("echo kept >file").await;
    cli.run(&["create", "bob"]).await.ok();
    cli.run(&["run", "bob", "--", "sh", "-c", "echo archived >file"]).await.ok();
    cli.run(&["rm", "bob"]).await.ok();
    let (root, token) = (podling.token().to_owned(), user_token(&podling).await);

    // The commands of docs/backup.md.
    cli.run(&["down", "--force"]).await.ok();
    assert!(podling.wait_exit().await.success());
    let (data, backup) = (podling.data().to_owned(), podling.dir().join("backup"));
    let copied = Command::new("cp").arg("-a").args([&data, &backup]).status().expect("cp");
    assert!(copied.success());
    fs::remove_dir_all(&data).expect("the disk is lost");
    let restored = podling.dir().join("another-disk");
    let copied = Command::new("cp").arg("-a").args([&backup, &restored]).status().expect("cp");
    assert!(copied.success());
    podling.set_data(restored);

    podling.restart().await;
    assert!(podling.token() == root && is_accepted(&podling, &token).await);
    let cli = podling.cli();
    assert_eq!(cli.run(&["run", "ada", "--", "cat", "file"]).await.ok().out(), "kept\n");
    cli.run(&["restore", "bob"]).await.ok();
    assert_eq!(cli.run(&["run", "bob", "--", "cat", "file"]).await.ok().out(), "archived\n");
}
