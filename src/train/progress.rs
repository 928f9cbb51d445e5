//! [`Progress`]: what the terminal shows of a run; [`Pace`]: how fast it goes.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::log::Step;
use super::metrics::Scores;

/// The speed of the last few iterations; evaluations and checkpoints between them do not count.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Pictures and time of each.
    steps: VecDeque<(usize, Duration)>,
}

impl Pace {
    /// Iterations that count.
    const WINDOW: usize = 50;

    /// An iteration over `images` pictures took `elapsed`.
    pub fn step(&mut self, images: usize, elapsed: Duration) {
        if self.steps.len() == Self::WINDOW {
            self.steps.pop_front();
        }
        self.steps.push_back((images, elapsed));
    }

    /// Pictures per second; 0 before the first iteration.
    pub fn images_per_s(&self) -> f64 {
        let images: usize = self.steps.iter().map(|(images, _)| images).sum();
        images as f64 / self.seconds().max(f64::MIN_POSITIVE)
    }

    /// Seconds that `iterations` more will take; 0 before the first.
    pub fn seconds_left(&self, iterations: usize) -> f64 {
        self.seconds() / self.steps.len().max(1) as f64 * iterations as f64
    }

    fn seconds(&self) -> f64 {
        self.steps.iter().map(|(_, elapsed)| elapsed.as_secs_f64()).sum()
    }
}

/// What the terminal shows of a run: a bar, or now and then a line where there is no terminal.
///
/// Whatever must be read goes through [`Progress::say`] meanwhile; when the value is dropped the bar
/// stays as it is and the terminal is free.
#[derive(Debug)]
pub struct Progress {
    output: Output,
    iterations: usize,
    miou: Option<f64>,
}

enum Output {
    Bar(ProgressBar),
    Lines {
        out: Box<dyn Write + Send>,
        every: Every,
        /// Iteration and time of the last line.
        last: Option<(usize, Instant)>,
    },
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bar(_) => "Bar",
            Self::Lines { .. } => "Lines",
        })
    }
}

/// How often there is a line: when either is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Every {
    /// So many iterations.
    pub iterations: usize,
    /// So much time.
    pub time: Duration,
}

impl Default for Every {
    fn default() -> Self {
        Self { iterations: 50, time: Duration::from_secs(30) }
    }
}

impl Progress {
    /// A run of `iterations`, `done` of them already, on standard error.
    pub fn stderr(iterations: usize, done: usize) -> Self {
        let target = ProgressDrawTarget::stderr();
        if target.is_hidden() {
            return Self::lines(Box::new(io::stderr()), iterations, Every::default());
        }
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {wide_msg}")
            .expect("the template is a constant");
        let bar = ProgressBar::with_draw_target(Some(iterations as u64), target).with_style(style);
        bar.set_position(done as u64);
        Self { output: Output::Bar(bar), iterations, miou: None }
    }

    /// A run of `iterations`, as plain lines to `out`.
    pub fn lines(out: Box<dyn Write + Send>, iterations: usize, every: Every) -> Self {
        Self { output: Output::Lines { out, every, last: None }, iterations, miou: None }
    }

    /// An iteration is complete.
    pub fn step(&mut self, step: &Step) {
        let text = describe(step, self.miou);
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_position(step.iteration as u64);
                bar.set_message(text);
            }
            Output::Lines { out, every, last } => {
                let due = last.is_none_or(|(iteration, time)| {
                    step.iteration.saturating_sub(iteration) >= every.iterations
                        || time.elapsed() >= every.time
                });
                if due || step.iteration == self.iterations {
                    *last = Some((step.iteration, Instant::now()));
                    print(out, &format!("{}/{}  {text}", step.iteration, self.iterations));
                }
            }
        }
    }

    /// The model was evaluated after `iteration`.
    pub fn eval(&mut self, iteration: usize, scores: &Scores) {
        self.miou = Some(scores.miou);
        let Scores { miou, macc, aacc, .. } = scores;
        let [miou, macc, aacc] = [miou, macc, aacc].map(|score| 100.0 * score);
        self.say(&format!("iteration {iteration}: mIoU {miou:.2}, mAcc {macc:.2}, aAcc {aacc:.2}"));
    }

    /// Shows `text` at once, on lines of its own, bar or not.
    pub fn say(&mut self, text: &str) {
        match &mut self.output {
            // Not the bar's own println, which is silent where the bar cannot be seen.
            Output::Bar(bar) => bar.suspend(|| print(&mut io::stderr(), text)),
            Output::Lines { out, .. } => print(out, text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Output::Bar(bar) = &self.output {
            bar.abandon();
        }
    }
}

fn print(out: &mut dyn Write, text: &str) {
    // A run does not end because nobody listens any more.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn describe(step: &Step, miou: Option<f64>) -> String {
    let miou = miou.map_or(String::new(), |miou| format!("  mIoU {:.2}", 100.0 * miou));
    format!(
        "loss {:.4}{miou}  lr {:.2e}  {:.1} images/s  {} left",
        step.loss,
        step.lr,
        step.images_per_s,
        clock(step.seconds_left)
    )
}

/// `0:07`, `12:34`, `1:02:03`, `2d 1:02:03`.
fn clock(seconds: f64) -> String {
    let total = seconds.round() as u64;
    let (days, hours, minutes, seconds) =
        (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{seconds:02}"),
        (0, _) => format!("{hours}:{minutes:02}:{seconds:02}"),
        _ => format!("{days}d {hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::train::metrics::Confusion;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn step(iteration: usize) -> Step {
        Step {
            iteration,
            loss: 0.5,
            loss_ce: 0.4,
            loss_cate: Some(0.1),
            loss_terms: std::collections::BTreeMap::new(),
            lr: 1e-3,
            images_per_s: 7.125,
            seconds_left: 3725.4,
        }
    }

    fn shown(every: Every, run: impl FnOnce(&mut Progress)) -> Vec<String> {
        let sink = Sink::default();
        let mut progress = Progress::lines(Box::new(sink.clone()), 10, every);
        run(&mut progress);
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        text.lines().map(String::from).collect()
    }

    #[test]
    fn lines_come_first_last_and_every_few_iterations() {
        let every = Every { iterations: 4, time: Duration::MAX };
        let lines = shown(every, |progress| (1..=10).for_each(|i| progress.step(&step(i))));
        let starts: Vec<_> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(starts, ["1/10", "5/10", "9/10", "10/10"]);
        assert_eq!(lines[0], "1/10  loss 0.5000  lr 1.00e-3  7.1 images/s  1:02:05 left");
    }

    #[test]
    fn lines_come_when_time_is_over() {
        let every = Every { iterations: usize::MAX, time: Duration::ZERO };
        let lines = shown(every, |progress| (1..=3).for_each(|i| progress.step(&step(i))));
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_is_said_and_evaluated_is_always_shown() {
        let every = Every { iterations: usize::MAX, time: Duration::MAX };
        let mut confusion = Confusion::new(2);
        confusion.add(&[0, 1, 1], &[0, 0, 1]).unwrap();
        let lines = shown(every, |progress| {
            progress.step(&step(1));
            progress.say("cannot read a.jpg");
            progress.eval(9, &confusion.scores());
            progress.step(&step(10));
        });
        assert_eq!(lines[1], "cannot read a.jpg");
        assert_eq!(lines[2], "iteration 9: mIoU 50.00, mAcc 75.00, aAcc 66.67");
        assert!(lines[3].contains("  mIoU 50.00  "), "{}", lines[3]);
    }

    #[test]
    fn a_bar_that_nobody_sees_and_a_closed_pipe_do_no_harm() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut progress = Progress::lines(Box::new(Closed), 10, Every::default());
        progress.step(&step(1));
        progress.say("x");
        let output = Output::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()));
        let mut progress = Progress { output, iterations: 10, miou: None };
        progress.step(&step(1));
    }

    #[test]
    fn the_pace_is_that_of_the_last_iterations() {
        let mut pace = Pace::default();
        assert_eq!((pace.images_per_s(), pace.seconds_left(9)), (0.0, 0.0));
        // The first iteration compiles; it is forgotten in time.
        pace.step(4, Duration::from_secs(60));
        (0..50).for_each(|_| pace.step(4, Duration::from_millis(500)));
        assert_eq!((pace.images_per_s(), pace.seconds_left(10)), (8.0, 5.0));
    }

    #[test]
    fn times_read_like_a_clock() {
        let times = [7.2, 754.0, 3723.0, 176_523.0, f64::NAN, f64::INFINITY].map(clock);
        assert_eq!(times[..4], ["0:07", "12:34", "1:02:03", "2d 1:02:03"]);
    }
}
