//! Chromium without a window, driven by its DevTools protocol over pipes.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use testbed::{Node, Tool};

/// The longest time for an answer: the browser starts with the first one.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A browser with one page.
pub(crate) struct Browser {
    process: Child,
    input: RefCell<ChildStdin>,
    messages: Receiver<Value>,
    /// Events that arrived while an answer was waited for.
    events: RefCell<Vec<Value>>,
    last: Cell<u64>,
    session: RefCell<Option<String>>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser in a node's network, with a window of this size.
    pub(crate) fn start(node: &Node, (width, height): (u32, u32)) -> Self {
        let profile = tempfile::tempdir().expect("a directory");
        let chromium = Tool::Chromium.path().expect("it is installed");
        // The browser reads commands from descriptor 3 and writes to descriptor 4.
        let script = "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(chromium);
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--remote-debugging-pipe", "--hide-scrollbars"]);
        command.arg(format!("--window-size={width},{height}"));
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        command.env("HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = node.run(|| command.spawn()).expect("the browser starts");
        let input = RefCell::new(process.stdin.take().expect("a pipe"));
        let output = process.stdout.take().expect("a pipe");
        let (sender, messages) = channel();
        thread::spawn(move || read(output, |message| sender.send(message).is_ok()));
        let browser = Self {
            process,
            input,
            messages,
            events: RefCell::default(),
            last: Cell::new(0),
            session: RefCell::new(None),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = target["targetId"].as_str().expect("a page").to_owned();
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        *browser.session.borrow_mut() = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Calls a method and returns its result.
    pub(crate) fn call(&self, method: &str, parameters: &Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Calls a method and returns its result, or the browser's error.
    fn try_call(&self, method: &str, parameters: &Value) -> Result<Value, String> {
        let id = self.last.get() + 1;
        self.last.set(id);
        let mut request = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &*self.session.borrow() {
            request["sessionId"] = session.as_str().into();
        }
        let mut bytes = serde_json::to_vec(&request).expect("JSON");
        bytes.push(0);
        self.input.borrow_mut().write_all(&bytes).expect("the browser reads");
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let message =
                self.next(deadline).unwrap_or_else(|error| panic!("{method} is not answered: {error}"));
            if message["id"] == id {
                let error = &message["error"];
                return if error.is_null() { Ok(message["result"].clone()) } else { Err(error.to_string()) };
            }
            self.events.borrow_mut().push(message);
        }
    }

    fn next(&self, deadline: Instant) -> Result<Value, RecvTimeoutError> {
        self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    }

    /// Opens an address and waits until the page is complete.
    pub(crate) fn open(&self, url: &str) {
        self.events.borrow_mut().clear();
        let result = self.call("Page.navigate", &json!({"url": url}));
        assert!(result["errorText"].is_null(), "{url}: {result}");
        let deadline = Instant::now() + TIMEOUT;
        while self.evaluate("document.readyState + location.href") != json!(format!("complete{url}")) {
            assert!(Instant::now() < deadline, "{url} is not complete");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value of an expression in the page.
    pub(crate) fn evaluate(&self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        // A page that loads itself again meanwhile has no value for it.
        let deadline = Instant::now() + TIMEOUT;
        let result = loop {
            match self.try_call("Runtime.evaluate", &parameters) {
                Ok(result) => break result,
                Err(error) if error.contains("navigated") && Instant::now() < deadline => {}
                Err(error) => panic!("{expression}: {error}"),
            }
        };
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// The text of the page as it is shown.
    pub(crate) fn text(&self) -> String {
        self.evaluate("document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true. Returns the time it took.
    pub(crate) fn wait(&self, expression: &str, limit: Duration) -> Result<Duration, String> {
        let begin = Instant::now();
        while self.evaluate(expression) != json!(true) {
            if begin.elapsed() > limit {
                return Err(format!("not within {limit:?}: {expression}\n{}", self.text()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(begin.elapsed())
    }

    /// What the page and the browser complained about since it was opened.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.evaluate("0");
        const COMPLAINTS: [&str; 5] = [
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Audits.issueAdded",
            "Network.loadingFailed",
            "Log.entryAdded",
        ];
        let is_complaint =
            |event: &&Value| COMPLAINTS.iter().any(|method| event["method"].as_str() == Some(method));
        self.events.borrow().iter().filter(is_complaint).map(Value::to_string).collect()
    }

    /// Writes a picture of the whole page to the directory that `CPLB_SCREENSHOTS` names, if there is one.
    pub(crate) fn screenshot(&self, name: &str) {
        let Some(directory) = std::env::var_os("CPLB_SCREENSHOTS") else { return };
        let height = self.evaluate("document.documentElement.scrollHeight");
        let clip =
            json!({"x": 0, "y": 0, "width": self.evaluate("innerWidth"), "height": height, "scale": 1});
        let parameters = json!({"captureBeyondViewport": true, "clip": clip});
        let result = self.call("Page.captureScreenshot", &parameters);
        let data = result["data"].as_str().unwrap_or_default();
        let picture = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        std::fs::write(Path::new(&directory).join(format!("{name}.png")), picture).expect("it is written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Passes messages on, each ended by a zero byte.
fn read(output: impl Read, mut pass: impl FnMut(Value) -> bool) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while output.read_until(0, &mut bytes).is_ok_and(|length| length > 0) {
        bytes.pop();
        match serde_json::from_slice(&bytes) {
            Ok(message) => {
                if !pass(message) {
                    return;
                }
            }
            // The page may have text that is no Unicode; an answer with it is waited for in vain.
            Err(error) => eprintln!("not understood: {error}: {}", String::from_utf8_lossy(&bytes)),
        }
        bytes.clear();
    }
}
