//! Templates as users meet them: each built-in and each documented one is created, attached and
//! typed into. Templates that are broken say so.

use std::fs;

use podling_tests::{Podling, TerminalWindow, tools::repository, wait_for};

/// First line of a documented template, before and after its name.
const DOCUMENTED: (&str, &str) = ("# <data>/templates/", ".toml");

/// Returns name and text of each template in the documentation.
fn documented_templates() -> Vec<(String, String)> {
    let docs = fs::read_dir(repository().join("docs")).expect("docs").flatten().map(|entry| entry.path());
    let pages = docs.chain([repository().join("README.md")]).filter(|page| page.extension().is_some());
    let mut found = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            let first = block.lines().next().unwrap_or_default();
            let name = first.strip_prefix(DOCUMENTED.0).and_then(|rest| rest.strip_suffix(DOCUMENTED.1));
            found.extend(name.map(|name| (name.to_owned(), block.to_owned())));
        }
    }
    found
}

fn has_python() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join("python3").is_file())
}

/// Types into the workspace's terminal, and ends its program.
async fn use_terminal(podling: &Podling, name: &str, python: bool) {
    let mut window = TerminalWindow::open(&podling.cli().command(&["attach", name]));
    if python {
        window.wait_for_text(">>> ").await;
        window.type_text("print(6 * 7, 'is it')\r");
        window.wait_for_text("42 is it").await;
        window.type_text("exit(5)\r");
    } else {
        window.wait_for_prompt().await;
        window.type_text("echo $((6*7)) is it\r");
        window.wait_for_text("42 is it").await;
        window.type_text("exit 5\r");
    }
    assert_eq!(window.wait_exit().await, Some(5), "{name}: {}", window.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_and_documented_templates_are_usable() {
    let mut podling = Podling::up().await;
    let cli = podling.cli();
    let directory = podling.data().join("templates");
    fs::create_dir_all(&directory).expect("a directory");
    let documented = documented_templates();
    assert!(!documented.is_empty(), "no template was found in the documentation");
    // The control plane runs already, so templates are read when a workspace is created.
    for (name, text) in &documented {
        fs::write(directory.join(format!("{name}.toml")), text).expect("a template");
    }
    fs::write(directory.join("own.toml"), "[env]\nSHELL = \"python3\"\n").expect("a template");
    fs::write(directory.join("nologin.toml"), "[env]\nSHELL = \"/usr/sbin/nologin\"\n").expect("a template");
    let names = ["shell", "python", "own", "nologin"].into_iter();
    for template in names.chain(documented.iter().map(|(name, _)| name.as_str())) {
        podling.create(template, &["--template", template]).await;
        use_terminal(&podling, template, ["python", "own"].contains(&template) && has_python()).await;
    }

    // A file that is not valid affects only its own template.
    fs::write(directory.join("broken.toml"), "# ours\ncomand = [\"jupyter\"]\n").expect("a template");
    let broken = cli.run(&["create", "bob", "--template", "broken"]).await.exits(1).err();
    for words in ["broken.toml, line 2", "unknown key comand", "description, command", "correct it"] {
        assert!(broken.contains(words), "{words:?} is missing: {broken}");
    }
    let unknown = cli.run(&["create", "bob", "--template", "brokn"]).await.exits(3).err();
    assert!(unknown.contains("shell; not valid: broken"), "{unknown}");
    podling.create("ada", &["--template", "own"]).await;
    podling.ctrl_c().await;
    podling.restart().await;
    assert!(podling.log().contains("broken.toml, line 2"), "{}", podling.log());
    fs::write(directory.join("broken.toml"), "description = \"corrected\"\n").expect("a template");
    podling.create("bob", &["--template", "broken"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_command_of_a_template_is_shown() {
    let podling = Podling::up().await;
    let cli = podling.cli();
    let directory = podling.data().join("templates");
    fs::create_dir_all(&directory).expect("a directory");
    let script = "echo 'port 8888 is in use' >&2; test -e repaired && exec sleep 1000; exit 3";
    let ends = format!("command = [\"sh\", \"-c\", \"{script}\"]\n");
    for (name, text) in [
        ("missing", "command = [\"no-such-ide\", \"--port=8888\"]\n"),
        ("ends", ends.as_str()),
        ("runs", "command = [\"sleep\", \"1000\"]\n"),
    ] {
        fs::write(directory.join(format!("{name}.toml")), text).expect("a template");
        podling.create(name, &["--template", name]).await;
    }
    let reason = async |name: &str| {
        let explained = cli.run(&["explain", name, "--json"]).await.ok().json();
        explained["workspace"]["reason"]["code"].as_str().map(str::to_owned)
    };
    for name in ["missing", "ends"] {
        wait_for("the reason names the failure", async || {
            (reason(name).await.as_deref() == Some("command-failed")).then_some(())
        })
        .await;
    }
    let explained = cli.run(&["explain", "missing"]).await.ok().out();
    assert!(explained.contains("no-such-ide: no such program in PATH"), "{explained}");
    let explained = cli.run(&["explain", "ends"]).await.ok().out();
    assert!(
        explained.contains("sh ended: exit code 3") && explained.contains("\n  port 8888 is in use\n"),
        "{explained}"
    );
    let list = cli.run(&["ls"]).await.ok().out();
    let line = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(line("missing").contains("command fails: no-such-ide: no such program"), "{list}");
    assert!(line("ends").contains("command fails: sh ended: exit code 3"), "{list}");
    assert!(!line("runs").contains("fails"), "{list}");
    assert_eq!(reason("runs").await.as_deref(), Some("agent-connected"));

    // The terminal is usable, and the user is told.
    let mut window = TerminalWindow::open(&cli.command(&["attach", "ends"]));
    window.wait_for_text("the workspace's command fails: sh ended: exit code 3").await;
    window.wait_for_prompt().await;
    window.type_text("touch repaired; exit 5\r");
    assert_eq!(window.wait_exit().await, Some(5));
    wait_for("the reason of a command that runs again", async || {
        (reason("ends").await.as_deref() == Some("agent-connected")).then_some(())
    })
    .await;
}
