//! Quotas and the admission queue. Workspaces beyond the quota wait at a visible position, and are
//! admitted when quota is freed.

use podling_proto::{agent::v1::CreateTerminalRequest, control::v1::State, error::Reason};
use podling_tests::{Podling, PodlingOptions, TerminalWindow, Workspace, argv, reason, wait_for};

const LARGE: &str = "[resources]\ncpu = \"800m\"\nmemory = \"256MiB\"\n";
const MOST: &str = "[resources]\ncpu = \"300m\"\nmemory = \"256MiB\"\n";
const HALF: &str = "[resources]\ncpu = \"200m\"\nmemory = \"256MiB\"\n";
const SMALL: &str = "[resources]\ncpu = \"100m\"\nmemory = \"256MiB\"\n";
const HUNGRY: &str = "[resources]\ncpu = \"100m\"\nmemory = \"3GiB\"\n";

async fn up(args: &[&str]) -> Podling {
    let templates =
        vec![("large", LARGE), ("most", MOST), ("half", HALF), ("small", SMALL), ("hungry", HUNGRY)];
    Podling::up_with(PodlingOptions { args: argv(args), templates, ..PodlingOptions::default() }).await
}

/// Creates a workspace and waits until it has this queue position.
async fn create_queued(podling: &Podling, name: &str, flags: &[&str], position: u32) -> Workspace {
    let workspace = podling.create(name, &[flags, &["--no-wait"]].concat()).await;
    wait_for_position(podling, &workspace, position).await;
    workspace
}

async fn wait_for_position(podling: &Podling, workspace: &Workspace, position: u32) {
    wait_for(&format!("{} is at position {position} of the admission queue", workspace.name), async || {
        let now = podling.get(workspace).await;
        (now.state() == State::Queued && now.queue_position == position).then_some(())
    })
    .await;
}

async fn sleep(podling: &Podling, workspace: &Workspace) {
    podling.cli().run(&["sleep", &workspace.id, "--force"]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_owner_has_a_quota_and_first_in_queue_is_admitted() {
    let podling = up(&["--quota-awake", "1"]).await;
    let cli = podling.cli();
    let one = podling.create("one", &[]).await;
    let two = create_queued(&podling, "two", &[], 1).await;
    let three = create_queued(&podling, "three", &[], 2).await;
    // Quotas of owners are independent.
    let bobs = podling.create("one", &["--owner", "bob"]).await;
    create_queued(&podling, "two", &["--owner", "bob"], 3).await;
    let listed = cli.run(&["ls"]).await.ok().out();
    for (name, position) in [("two", "position 1"), ("three", "position 2")] {
        let line = listed.lines().find(|line| line.starts_with(name)).expect("workspace is listed");
        assert!(line.contains("queued") && line.contains(position), "{listed}");
    }
    assert!(cli.run(&["explain", "two"]).await.ok().out().contains("1st in the admission queue"));

    // A user attaches to a queued workspace and waits.
    let mut window = TerminalWindow::open(&cli.command(&["attach", "three"]));
    window.wait_for_text("in the admission queue").await;
    sleep(&podling, &one).await;
    podling.wait_until_awake(&two).await;
    wait_for_position(&podling, &three, 1).await;
    assert_eq!(podling.get(&bobs).await.state(), State::Awake);
    sleep(&podling, &two).await;
    window.wait_for_prompt().await;
    window.type_text("echo he''re\r");
    window.wait_for_text("here").await;
    // A workspace that wakes again joins the queue at its end.
    cli.run(&["wake", "one", "--no-wait"]).await.ok();
    wait_for("one is queued again", async || (podling.get(&one).await.queue_position > 0).then_some(()))
        .await;
    assert_eq!(podling.get(&three).await.state(), State::Awake);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_call_of_queued_workspace_times_out() {
    let podling = up(&["--capacity-awake", "1"]).await;
    let one = podling.create("one", &[]).await;
    let two = create_queued(&podling, "two", &["--owner", "bob"], 1).await;
    let three = create_queued(&podling, "three", &["--owner", "carol"], 2).await;
    let open = async |workspace: &Workspace| {
        let request = CreateTerminalRequest { argv: argv(&["cat"]), ..Default::default() };
        podling.client().for_workspace(&workspace.id).terminals().create(request).await
    };
    let freed = async {
        wait_for("both calls are held", async || {
            (podling.metric("podling_held_requests").await == Some(2.0)).then_some(())
        })
        .await;
        sleep(&podling, &one).await;
    };
    let (first, second, ()) = tokio::join!(open(&two), open(&three), freed);
    assert!(first.is_ok(), "{first:?}");
    let refused = second.expect_err("two uses the whole capacity");
    assert_eq!(reason(&refused), Reason::WakeTimeout);
    assert!(refused.message().contains("at position 1 of the admission queue"), "{refused:?}");
    assert_eq!(podling.get(&three).await.queue_position, 1, "three keeps its queue position");
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_and_memory_quotas_queue_or_reject_workspaces() {
    let podling = up(&["--quota-cpu", "400m", "--quota-memory", "2GiB"]).await;
    let cli = podling.cli();
    for template in ["large", "hungry"] {
        let refused = cli.run(&["create", "never", "--template", template]).await;
        assert!(refused.code.is_some_and(|code| code != 0), "{refused:?}");
        assert!(refused.err().contains("requested CPU or memory exceeds the quota"), "{}", refused.err());
    }
    assert_eq!(
        cli.run(&["ls", "--json"]).await.ok().json(),
        serde_json::json!([]),
        "no workspace is created"
    );
    let first = podling.create("first", &["--template", "most"]).await;
    let second = create_queued(&podling, "second", &["--template", "most"], 1).await;
    // The quota would admit the third beside the first, but the second is ahead in the queue.
    let third = create_queued(&podling, "third", &["--template", "small"], 2).await;
    sleep(&podling, &first).await;
    podling.wait_until_awake(&second).await;
    podling.wait_until_awake(&third).await;
    cli.run(&["wake", "first", "--no-wait"]).await.ok();
    wait_for_position(&podling, &first, 1).await;
    cli.run(&["rm", "second"]).await.ok();
    podling.wait_until_awake(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resize_beyond_quota_waits_and_keeps_workspace_running() {
    let podling = up(&["--quota-cpu", "400m"]).await;
    let cli = podling.cli();
    let one = podling.create("one", &["--template", "half"]).await;
    let two = podling.create("two", &["--template", "half"]).await;
    let mut window = TerminalWindow::open(&cli.command(&["attach", "one"]));
    window.wait_for_prompt().await;
    window.type_text("job() { until test -e over; do sleep 0.1; done; echo all do''ne; }; job\r");
    let never = cli.run(&["resize", "one", "--cpu", "500m"]).await;
    assert!(never.err().contains("requested CPU or memory exceeds the quota"), "{}", never.err());
    let printed = cli.run(&["resize", "one", "--cpu", "300m"]).await.ok().out();
    assert!(printed.contains("one has 0.2 cores") && printed.contains("waits for 0.3 cores"), "{printed}");
    wait_for("the resize is queued", async || (podling.get(&one).await.queue_position == 1).then_some(()))
        .await;
    let explained = cli.run(&["explain", "one"]).await.ok().out();
    assert!(
        explained.contains("has been awake") && explained.contains("1st in the admission queue"),
        "{explained}"
    );

    sleep(&podling, &two).await;
    wait_for("the resize is applied", async || {
        let now = podling.get(&one).await;
        (now.allocated == now.requested && now.allocated?.cpu_millis == 300).then_some(())
    })
    .await;
    podling.client().for_workspace(&one.id).sh("touch ~/over").await;
    window.wait_for_text("all done").await;
    // A tenth of a core is left, which is too little for the other workspace until it is resized.
    cli.run(&["wake", "two", "--no-wait"]).await.ok();
    wait_for_position(&podling, &two, 1).await;
    cli.run(&["resize", "two", "--cpu", "100m"]).await.ok();
    podling.wait_until_awake(&two).await;
}
