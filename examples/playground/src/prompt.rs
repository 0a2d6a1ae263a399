//! Where commands come from: a terminal, a pipe, or a file.

use crate::command::{COMMANDS, name};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{CompletionType, Config, Context, Editor};
use rustyline::{Helper, Highlighter, Hinter, Validator};
use std::fs::File;
use std::io::{BufRead, BufReader, Error, IsTerminal, Result, Write, stdin, stdout};
use std::path::Path;

const PROMPT: &str = "> ";

/// A source of lines.
pub(crate) enum Input {
    /// With editing, history (the arrows), search (Ctrl-R) and completion (Tab).
    Terminal(Box<Editor<Completion, DefaultHistory>>),
    /// Each line is shown as if it had been typed, so that the output can be read by itself.
    Script(Box<dyn BufRead>),
}

impl Input {
    pub(crate) fn new(file: Option<&Path>) -> Result<Input> {
        let Some(file) = file else {
            return if stdin().is_terminal() {
                Input::terminal().map_err(Error::other)
            } else {
                Ok(Input::Script(Box::new(stdin().lock())))
            };
        };
        let failed = |error| Error::other(format!("{} cannot be read: {error}", file.display()));
        Ok(Input::Script(Box::new(BufReader::new(File::open(file).map_err(failed)?))))
    }

    fn terminal() -> rustyline::Result<Input> {
        let config =
            Config::builder().auto_add_history(true).completion_type(CompletionType::List).build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Completion { files: FilenameCompleter::new() }));
        Ok(Input::Terminal(Box::new(editor)))
    }

    /// The next line, or nothing at the end.
    pub(crate) fn next(&mut self) -> Result<Option<String>> {
        match self {
            Input::Terminal(editor) => loop {
                match editor.readline(PROMPT) {
                    Ok(line) => return Ok(Some(line)),
                    Err(ReadlineError::Interrupted) => {
                        writeln!(stdout(), "quit, or Ctrl-D, leaves")?
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(Error::other(error)),
                }
            },
            Input::Script(lines) => {
                let Some(line) = lines.lines().next().transpose()? else { return Ok(None) };
                writeln!(stdout(), "{PROMPT}{line}")?;
                Ok(Some(line))
            }
        }
    }
}

/// Completes the names of commands, and after `load` those of files.
#[derive(Helper, Highlighter, Hinter, Validator)]
pub(crate) struct Completion {
    files: FilenameCompleter,
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(
        &self, line: &str, position: usize, context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..position];
        if typed.starts_with("load ") {
            return self.files.complete(line, position, context);
        }
        let names = COMMANDS.iter().map(|(form, _)| name(form));
        let names = names.filter(|name| name.starts_with(typed));
        let pair = |name: &str| Pair { display: name.to_string(), replacement: format!("{name} ") };
        Ok((0, names.map(pair).collect()))
    }
}
