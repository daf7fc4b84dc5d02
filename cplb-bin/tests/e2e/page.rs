//! The status page in a real browser.

mod browser;

use std::time::Duration;

use serde_json::json;
use testbed::{Probe, Signal, Test, Tool};

use crate::support::{Cluster, Plan, TIMEOUT, median};

use browser::Browser;

const PORT: u16 = 9000;
const DESKTOP: (u32, u32) = (1280, 1000);

pub(crate) fn tests() -> Vec<Test> {
    let test = |name, body: fn()| Test::new(name, body).needs([Tool::Nft, Tool::Chromium]);
    vec![
        test("changes_appear_within_a_second", live).alone(),
        test("page_is_complete_without_javascript", without_javascript),
        test("page_is_accessible_in_both_colour_schemes_and_on_narrow_screens", accessible),
    ]
}

fn plan() -> Plan {
    Plan::v3("100ms").spec(format!("status: {{listen: '0.0.0.0:{PORT}'}}"))
}

fn url(cluster: &Cluster, index: usize) -> String {
    format!("http://{}:{PORT}/", cluster.node(index).v4())
}

fn started() -> (Cluster, usize) {
    let cluster = Cluster::start(plan());
    for index in 0..cluster.len() {
        cluster.wait("the nodes know each other", || {
            let status = cluster.status(index);
            status["peers"].as_array().map(Vec::len) == Some(cluster.len() - 1)
        });
    }
    let active = cluster.wait_for_owner(None);
    (cluster, active)
}

/// An expression that is true while the page says that a node is Active.
fn is_active(cluster: &Cluster, index: usize) -> String {
    let name = cluster.node(index).name();
    format!(
        "[...document.querySelectorAll('.active')].some((line) => line.innerText.startsWith('Active {name} '))"
    )
}

fn expect<T>(cluster: &Cluster, result: Result<T, String>) -> T {
    result.unwrap_or_else(|error| cluster.fail(&error))
}

fn expect_no_complaint(cluster: &Cluster, browser: &Browser) {
    let complaints = browser.complaints();
    cluster.check(complaints.is_empty(), || format!("the browser complains: {complaints:#?}"));
}

/// The longest time until a change appears: the page asks twice a second. Three times as much is for the machine.
const PROMISED: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(3);

fn live() {
    let (mut cluster, mut active) = started();
    let mut times = Vec::new();
    let mut viewed = usize::MAX;
    let browser = Browser::start(cluster.client(), DESKTOP);
    let load = Probe::to(cluster.address()).every(Duration::from_millis(20));
    let _load = load.start(cluster.client()).expect("the probe starts");
    for _ in 0..5 {
        // The page of a node that stays.
        let next = (0..cluster.len()).find(|index| *index != active).expect("another node");
        if next != viewed {
            browser.open(&url(&cluster, next));
            viewed = next;
        }
        expect(&cluster, browser.wait(&is_active(&cluster, active), TIMEOUT));
        cluster.signal(active, Signal::SIGKILL);
        let owner = cluster.wait_for_owner(Some(active));
        times.push(expect(&cluster, browser.wait(&is_active(&cluster, owner), LIMIT)));
        expect_no_complaint(&cluster, &browser);
        cluster.wait_until_ended(active);
        cluster.start_daemon(active);
        active = cluster.wait_until_settled();
    }
    println!("MEASURED an Active appears after {times:?}");
    cluster.check(median(&times) <= PROMISED, || format!("{times:?}"));
    // A backend that dies turns visibly dead.
    let dead = "[...document.querySelectorAll('#services .badge.bad')].some((it) => it.innerText == 'down')";
    cluster.check(browser.evaluate(dead) == json!(false), || browser.text());
    drop(cluster.backends.remove(0));
    let is_down = |cluster: &Cluster| {
        let status = cluster.status(viewed);
        let backends = status["services"][0]["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().any(|backend| backend["state"] == "down")
    };
    cluster.wait("the backend is down", || is_down(&cluster));
    let took = expect(&cluster, browser.wait(dead, LIMIT));
    let courses = "document.querySelectorAll('#services polyline').length == 3";
    expect(&cluster, browser.wait(courses, TIMEOUT));
    browser.screenshot("page");
    println!("MEASURED a dead backend appears after {took:?}");
    let text = browser.text();
    cluster.check(text.contains("2 of 3 up") && text.contains("fell silent"), || text.clone());
    expect_no_complaint(&cluster, &browser);
}

fn without_javascript() {
    let (cluster, active) = started();
    let browser = Browser::start(cluster.client(), DESKTOP);
    browser.call("Emulation.setScriptExecutionDisabled", &json!({"value": true}));
    let viewed = (active + 1) % cluster.len();
    browser.open(&url(&cluster, viewed));
    let text = browser.text();
    let names = (0..cluster.len()).map(|index| cluster.node(index).name().to_owned());
    let expected =
        names.chain([cluster.vip().to_string(), "kube-apiserver".to_owned(), "History".to_owned()]);
    for expected in expected {
        cluster.check(text.contains(&expected), || format!("{expected} is not in {text}"));
    }
    // The page loads itself again.
    cluster.signal(active, Signal::SIGKILL);
    let owner = cluster.wait_for_owner(Some(active));
    expect(&cluster, browser.wait(&is_active(&cluster, owner), TIMEOUT));
    expect_no_complaint(&cluster, &browser);
}

/// Faults that keep people from using a page, found in the page itself: of the structure that assistive technology depends on,
/// of the width, and of the contrast (WCAG 2.2, 1.4.3: at least 4.5).
const STRUCTURE: &str = r"(() => {
    const faults = [];
    const all = (selector) => [...document.querySelectorAll(selector)];
    if (!document.documentElement.lang) faults.push('no language');
    if (!document.title) faults.push('no title');
    if (all('h1').length != 1 || all('main').length != 1) faults.push('not one h1 and one main');
    let level = 1;
    for (const heading of all('h1, h2, h3')) {
        const next = Number(heading.tagName[1]);
        if (next > level + 1) faults.push('heading skips a level: ' + heading.innerText);
        level = next;
    }
    const ids = all('[id]').map((it) => it.id);
    if (new Set(ids).size != ids.length) faults.push('an id occurs twice');
    for (const it of all('[aria-labelledby]'))
        if (!document.getElementById(it.getAttribute('aria-labelledby'))) faults.push('label is missing');
    for (const it of all('svg'))
        if (!it.getAttribute('aria-label') && it.getAttribute('aria-hidden') != 'true') faults.push('svg without a name');
    for (const it of all('table'))
        if (it.querySelectorAll('thead th[scope=col]').length != it.rows[0].cells.length || !it.querySelector('tbody th[scope=row]'))
            faults.push('table without headers');
    for (const it of all('a, th, h1, h2:not([hidden] *), h3')) if (!it.innerText.trim()) faults.push('without a name: ' + it.outerHTML);
    for (const it of all('.scroll'))
        if (it.tabIndex != 0 || it.getAttribute('role') != 'region' || !it.getAttribute('aria-label')) faults.push('scroll region');
    if (document.documentElement.scrollWidth > innerWidth) faults.push('wider than the window');
    const channel = (value) => value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const colour = (text) => text.match(/[\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    for (const it of all('body *')) {
        const text = [...it.childNodes].some((node) => node.nodeType == 3 && node.data.trim());
        if (!text || !it.getClientRects().length) continue;
        let ground = it;
        while (ground && colour(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
        const [a, b] = [colour(getComputedStyle(it).color), colour(getComputedStyle(ground).backgroundColor)].map(luminance);
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) faults.push('contrast ' + contrast.toFixed(2) + ': ' + it.innerText);
    }
    return faults;
})()";

fn accessible() {
    let (cluster, active) = started();
    let browser = Browser::start(cluster.client(), DESKTOP);
    // With what is seldom on the page, too: problems, and a drained backend.
    let mut command = std::process::Command::new(crate::support::binary());
    let drained = cluster.node(0).v4().to_string();
    command.args(["drain", &drained, "--socket"]).arg(cluster.socket(active));
    cluster.check(command.status().is_ok_and(|status| status.success()), || "not drained".to_owned());
    for scheme in ["light", "dark"] {
        for width in [1280, 360] {
            let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
            browser.call("Emulation.setEmulatedMedia", &json!({"features": features}));
            let metrics =
                json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
            browser.call("Emulation.setDeviceMetricsOverride", &metrics);
            browser.open(&url(&cluster, active));
            let faults = browser.evaluate(STRUCTURE);
            cluster.check(faults == json!([]), || format!("{scheme} {width}: {faults}"));
            expect_no_complaint(&cluster, &browser);
            browser.screenshot(&format!("page-{scheme}-{width}"));
        }
    }
    // The audit finds a fault where there is one.
    browser.evaluate(
        "document.querySelector('h1').style.color = getComputedStyle(document.body).backgroundColor",
    );
    let faults = browser.evaluate(STRUCTURE).to_string();
    cluster.check(faults.contains("contrast 1.00"), || format!("the audit finds {faults}"));
}
