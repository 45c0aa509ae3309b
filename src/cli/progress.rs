//! How far a pull is, told to a person.

use crate::{hub::Progress, model_dir::variant::size};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{cell::Cell, io::Write};

/// On a terminal.
struct Bar(ProgressBar);

/// Everywhere else: a line for each file and for each tenth of the model.
pub(super) struct Lines {
    say: fn(&str),
    total: Cell<u64>,
    tenths: Cell<u64>,
}

/// For standard error, whatever it is.
pub(super) fn on_stderr() -> Box<dyn Progress> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if bar.is_hidden() {
        return Box::new(Lines::new(|text| {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
        }));
    }
    let template = "{msg}\n{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta}";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
    Box::new(Bar(bar))
}

impl Progress for Bar {
    fn begins(&self, bytes: u64, here: u64) {
        self.0.set_length(bytes);
        self.0.set_position(here);
        self.0.reset_eta();
    }

    fn file(&self, path: &str, bytes: u64) {
        self.0.set_message(format!("{path} ({})", size(bytes)));
    }

    fn at(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    fn notice(&self, text: &str) {
        self.0.println(text);
    }

    fn ends(&self) {
        self.0.finish_and_clear();
    }
}

impl Lines {
    pub(super) fn new(say: fn(&str)) -> Self {
        Self { say, total: Cell::default(), tenths: Cell::default() }
    }

    fn tenths(&self, bytes: u64) -> u64 {
        let tenths = u128::from(bytes) * 10 / u128::from(self.total.get().max(1));
        u64::try_from(tenths).unwrap_or(10)
    }
}

impl Progress for Lines {
    fn begins(&self, bytes: u64, here: u64) {
        self.total.set(bytes);
        self.tenths.set(self.tenths(here));
        (self.say)(&format!("{} of {} are here", size(here), size(bytes)));
    }

    fn file(&self, path: &str, bytes: u64) {
        (self.say)(&format!("fetching {path} ({})", size(bytes)));
    }

    fn at(&self, bytes: u64) {
        let tenths = self.tenths(bytes);
        if self.tenths.get() < tenths {
            self.tenths.set(tenths);
            (self.say)(&format!("{} % of {}", tenths * 10, size(self.total.get())));
        }
    }

    fn notice(&self, text: &str) {
        (self.say)(text);
    }

    fn ends(&self) {}
}
