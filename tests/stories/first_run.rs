//! The README's first commands on a fresh machine, and the next steps of a new user.

use podling_proto::agent::v1::ListTerminalsRequest;
use podling_tests::{Podling, PodlingOptions, TerminalWindow, program, wait_for, wait_until};
use rustix::termios::LocalModes;
use serde_json::Value;

fn find<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array().expect("a list").iter().find(|entry| entry["name"] == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn new_user_creates_workspace_and_runs_command() {
    let mut podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let hello = cli.run(&["run", "ada", "--", "echo", "hello"]).await.ok();
    assert_eq!((hello.out().as_str(), hello.err().as_str()), ("hello\n", ""));

    let list = cli.run(&["ls", "--json"]).await.ok().json();
    let ada = find(&list, "ada").expect("workspace is listed");
    assert_eq!(ada["state"], "awake");
    assert_eq!(ada["id"].as_str().map(str::len), Some(12));
    assert!(cli.run(&["ls"]).await.ok().out().contains("ada"));
    wait_for("explain shows the activity", async || {
        let explained = cli.run(&["explain", "ada", "--json"]).await.ok().json();
        (explained["workspace"]["activity"]["level"] == "active").then_some(())
    })
    .await;
    assert!(cli.run(&["explain", "ada"]).await.ok().out().contains("active"));

    // The name of an existing workspace cannot be used again, and an unknown name is not found.
    cli.run(&["create", "ada"]).await.exits(1);
    cli.run(&["explain", "missing"]).await.exits(3);

    // With --discard, no archive is created.
    cli.run(&["rm", "ada", "--discard"]).await.ok();
    assert!(find(&cli.run(&["ls", "--json"]).await.ok().json(), "ada").is_none());

    cli.run(&["down", "--force"]).await.ok();
    assert!(podling.wait_exit().await.success());
    assert_eq!(podling.running_processes(), [], "no process survives podling down");
    cli.run(&["ls"]).await.exits(5);
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_passes_keys_size_and_signals() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let inside = podling.client().for_workspace(&podling.workspace("ada").await.id);
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    let before = window.modes();
    window.wait_for_prompt().await;
    assert!(!window.modes().local_modes.contains(LocalModes::ICANON), "the window is in raw mode");
    window.type_text("echo $((6*7))-is-it\r");
    window.wait_for_text("42-is-it").await;

    window.resize(33, 101);
    wait_until("the terminal has the window's size", || {
        window.type_text("stty size\r");
        window.output().contains("33 101")
    })
    .await;

    // Ctrl-C ends the foreground job, not the attachment.
    let foreground = async || {
        let list = inside.terminals().list(ListTerminalsRequest {}).await.expect("a list").into_inner();
        list.terminals[0].foreground.clone()
    };
    window.type_text("sleep 1000\r");
    wait_for("sleep is in the foreground", async || foreground().await.contains("sleep").then_some(())).await;
    window.type_text("\x03");
    wait_for("the shell is back", async || foreground().await.is_empty().then_some(())).await;
    window.type_text("echo after-$?\r");
    window.wait_for_text("after-130").await;

    window.type_text("exit 5\r");
    assert_eq!(window.wait_exit().await, Some(5));
    assert_eq!(before.local_modes, window.modes().local_modes, "the window's modes are restored");
}

#[tokio::test(flavor = "multi_thread")]
async fn reattached_terminal_shows_same_screen_and_shell() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    window.type_text("secret=wombat\r");
    window.type_text("echo set-$secret\r");
    window.wait_for_text("set-wombat").await;
    let before = window.modes();
    window.type_text(DETACH);
    assert_eq!(window.wait_exit().await, Some(0));
    assert!(
        window.modes().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO),
        "the window's modes are restored"
    );
    assert!(!before.local_modes.contains(LocalModes::ICANON));

    let mut again = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    again.wait_for_text("set-wombat").await;
    // The variable shows that the shell is the same process.
    again.type_text("echo still-$secret\r");
    again.wait_for_text("still-wombat").await;
    again.type_text("exit\r");
    assert_eq!(again.wait_exit().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_commands_trust_the_certificate_of_up() {
    let files = tempfile::tempdir().expect("a directory");
    let write = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(vec!["podling.example".to_owned()])
            .and_then(|params| params.self_signed(&key))
            .expect("a certificate");
        let path = |kind: &str| files.path().join(format!("{name}.{kind}")).display().to_string();
        std::fs::write(path("pem"), certificate.pem()).expect("a file");
        std::fs::write(path("key"), key.serialize_pem()).expect("a file");
        (path("pem"), path("key"))
    };
    let (certificate, key) = write("own");
    let args = ["--tls-cert", &certificate, "--tls-key", &key].map(String::from).to_vec();
    let podling = Podling::up_with(PodlingOptions { args, ..Default::default() }).await;
    assert!(podling.url().starts_with("https://"), "{}", podling.url());
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    assert_eq!(cli.run(&["run", "ada", "--", "echo", "hi"]).await.ok().out(), "hi\n");

    // Certificates that the user names take precedence, and a wrong one is not a stopped process.
    let (other, _) = write("other");
    let refused = cli.run(&["ls", "--ca", &other]).await.exits(5).err();
    assert!(
        refused.contains("its certificate is not trusted") && !refused.contains("podling up"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_name_commands_that_work_unchanged() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let data = podling.data().display().to_string();
    let elsewhere = podling.dir().join("elsewhere").display().to_string();
    let other = cli.clone().env("PODLING_DATA", &elsewhere);
    let created = other.run(&["create", "ada", "--data", &data]).await.ok().out();
    assert!(created.contains(&format!("with: podling --data {data} attach ada")), "{created}");
    let stopped = other.run(&["ls"]).await.exits(5).err();
    assert!(stopped.contains(&elsewhere) && stopped.contains("start it with: podling up\n"), "{stopped}");

    // The usage names what is required, whatever the environment sets.
    let usage = cli.run(&["run", "ada"]).await.exits(2).err();
    assert!(!usage.contains("--data"), "{usage}");

    // A shell completes the names of workspaces.
    cli.run(&["create", "adele"]).await.ok();
    let bin = program("podling").parent().expect("a directory").display().to_string();
    for (words, expected) in [
        ("podling attach ''", "ada adele"),
        ("podling attach ade", "adele"),
        ("podling --data DATA rm ada a", "ada adele"),
        ("podling policy set a", "ada adele"),
        ("podling cp ade", "adele:"),
        ("podling attach ada m", ""),
    ] {
        let words = words.replace("DATA", &data);
        let complete = format!(
            "PATH={bin}:$PATH; source <(podling completions bash); COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _podling_with_names podling \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; \
             echo ${{COMPREPLY[@]}}"
        );
        let mut bash = tokio::process::Command::new("bash");
        bash.args(["-c", &complete]).env_clear().envs(cli.envs());
        let output = bash.output().await.expect("bash runs");
        let completed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(completed.trim(), expected, "{words}: {output:?}");
    }

    // A dumb terminal shows no control sequences.
    let dumb = cli.clone().env("TERM", "dumb");
    for (cli, coloured) in [(&cli, true), (&dumb, false)] {
        let mut window = TerminalWindow::open(&cli.command(&["ls"]));
        assert_eq!(window.wait_exit().await, Some(0));
        assert_eq!(window.output().contains('\x1b'), coloured, "{}", window.output());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_cannot_be_attached_from_inside_itself() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ada"]));
    window.wait_for_prompt().await;
    let bin = program("podling").display().to_string();
    let envs: String = cli.envs().iter().map(|(name, value)| format!("{name}={value} ")).collect();
    window.type_text(&format!("{envs}{bin} attach ada; echo code $((400 + $?))\r"));
    window.wait_for_text("code 404").await;
    assert!(window.output().contains("because it would show its own output"), "{}", window.output());
    window.type_text("exit\r");
    assert_eq!(window.wait_exit().await, Some(0));
}

/// The detach key, Ctrl-].
const DETACH: &str = "\x1d";

#[tokio::test(flavor = "multi_thread")]
async fn data_directory_may_exceed_socket_path_length() {
    let podling = Podling::up_with(PodlingOptions { long_data_path: true, ..Default::default() }).await;
    assert!(podling.data().as_os_str().len() > 108);
    let cli = podling.cli();
    cli.run(&["create", "ada"]).await.ok();
    assert_eq!(cli.run(&["run", "ada", "--", "echo", "deep"]).await.ok().out(), "deep\n");
}
