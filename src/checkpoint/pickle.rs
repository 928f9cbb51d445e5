//! A machine for the pickles that `torch.save` and NumPy write.
//!
//! It builds numbers, words, lists, dictionaries and descriptions of arrays, and knows the few
//! functions in [`GLOBALS`] by what they would have made. There is nothing in it that could run any
//! other: a pickle that names one is refused with that name.
//!
//! Whatever the bytes are, work and memory stay below a multiple of their number: lengths are
//! compared with what is left before anything is copied, values are shared rather than copied,
//! containers live in one list and refer to each other by index (so a pickle cannot nest the reader
//! into a stack overflow), and what no opcode pays for is charged by [`Machine::spend`].

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::rc::Rc;

use safetensors::Dtype;

/// The most values that are read. A checkpoint of the largest published model with its optimiser
/// has some fifty thousand.
const MAX_VALUES: usize = 1 << 21;

/// The most axes of an array, as in NumPy.
const MAX_AXES: usize = 64;

/// What is wrong with a pickle, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// Offset of the opcode.
    pub(super) at: usize,
    pub(super) reason: String,
}

/// A piece of the pickle, or something decoded from one.
#[derive(Debug)]
pub(super) enum Shared<'a, T: ?Sized> {
    Borrowed(&'a T),
    Owned(Rc<T>),
}

impl<T: ?Sized> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        match self {
            Self::Borrowed(piece) => Self::Borrowed(piece),
            Self::Owned(piece) => Self::Owned(piece.clone()),
        }
    }
}

impl<T: ?Sized> Deref for Shared<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Borrowed(piece) => piece,
            Self::Owned(piece) => piece,
        }
    }
}

/// A value. Containers and arrays are indices into the [`Pickle`].
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Shared<'a, str>),
    /// Also the strings of Python 2, which may be either.
    Bytes(Shared<'a, [u8]>),
    /// A list or a set.
    List(usize),
    Tuple(usize),
    Dict(usize),
    Array(usize),
    Storage(usize),
    NumpyDtype(usize),
    Global(Global),
    /// Something without bearing on arrays, such as a device.
    Opaque,
}

impl Value<'_> {
    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// What it is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dictionary",
            Self::Array(_) => "an array",
            Self::Storage(_) => "a storage",
            Self::NumpyDtype(_) => "an element type",
            Self::Global(_) => "a function or class",
            Self::Opaque => "an object",
        }
    }
}

/// The elements of one or more arrays.
#[derive(Debug)]
pub(super) struct Storage<'a> {
    pub(super) source: Source<'a>,
    pub(super) dtype: Dtype,
    /// Length in bytes.
    pub(super) size: usize,
}

/// Where the elements are.
#[derive(Debug)]
pub(super) enum Source<'a> {
    /// Beside the pickle, under this name.
    Key(String),
    /// In the pickle.
    Bytes(Shared<'a, [u8]>, Range<usize>),
}

/// A view of a storage.
#[derive(Clone, Debug)]
pub(super) struct Array {
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// Where the first element is, counted in elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, per axis.
    pub(super) strides: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
struct NumpyDtype {
    dtype: Dtype,
    big_endian: bool,
}

/// What a pickle made.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    pub(super) root: Value<'a>,
    /// Items of lists, tuples and sets.
    pub(super) lists: Vec<Vec<Value<'a>>>,
    /// Pairs of dictionaries in the order in which they were set; a later pair hides an earlier one.
    pub(super) dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    pub(super) arrays: Vec<Array>,
    pub(super) storages: Vec<Storage<'a>>,
    /// How many values were read.
    pub(super) values: usize,
    /// Where the pickle ends.
    pub(super) end: usize,
}

impl<'a> Pickle<'a> {
    /// The value of `key` in the dictionary `index`.
    pub(super) fn get(&self, index: usize, key: &str) -> Option<&Value<'a>> {
        let pairs = self.dicts[index].iter().rev();
        pairs.into_iter().find(|(k, _)| k.text() == Some(key)).map(|(_, value)| value)
    }
}

/// The functions and classes that are understood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    Dict,
    Set,
    Complex,
    ByteArray,
    Encode,
    Size,
    Device,
    TensorClass,
    TypedStorage(Dtype),
    UntypedStorage,
    Dtype(Dtype),
    LoadFromBytes,
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    RebuildFromType,
    NumpyReconstruct,
    NumpyArray,
    NumpyDtype,
    NumpyScalar,
    NumpyFromBuffer,
}

/// Modules that are one under several names, the names in them, and what they are.
type Globals = (&'static [&'static str], &'static [(&'static str, Global)]);

/// What a pickle may name.
const GLOBALS: &[Globals] = &[
    (&["collections"], &[("OrderedDict", Global::Dict), ("Counter", Global::Dict)]),
    (
        &["builtins", "__builtin__"],
        &[
            ("set", Global::Set),
            ("frozenset", Global::Set),
            ("complex", Global::Complex),
            ("bytearray", Global::ByteArray),
            ("bytes", Global::ByteArray),
        ],
    ),
    (&["_codecs"], &[("encode", Global::Encode)]),
    (
        &["torch", "torch.cuda", "torch.storage"],
        &[
            ("DoubleStorage", Global::TypedStorage(Dtype::F64)),
            ("FloatStorage", Global::TypedStorage(Dtype::F32)),
            ("HalfStorage", Global::TypedStorage(Dtype::F16)),
            ("BFloat16Storage", Global::TypedStorage(Dtype::BF16)),
            ("LongStorage", Global::TypedStorage(Dtype::I64)),
            ("IntStorage", Global::TypedStorage(Dtype::I32)),
            ("ShortStorage", Global::TypedStorage(Dtype::I16)),
            ("CharStorage", Global::TypedStorage(Dtype::I8)),
            ("ByteStorage", Global::TypedStorage(Dtype::U8)),
            ("BoolStorage", Global::TypedStorage(Dtype::BOOL)),
            ("ComplexFloatStorage", Global::TypedStorage(Dtype::C64)),
            ("UntypedStorage", Global::UntypedStorage),
            ("_UntypedStorage", Global::UntypedStorage),
            ("_load_from_bytes", Global::LoadFromBytes),
        ],
    ),
    (
        &["torch"],
        &[
            ("Size", Global::Size),
            ("device", Global::Device),
            ("Tensor", Global::TensorClass),
            ("float64", Global::Dtype(Dtype::F64)),
            ("float32", Global::Dtype(Dtype::F32)),
            ("float16", Global::Dtype(Dtype::F16)),
            ("bfloat16", Global::Dtype(Dtype::BF16)),
            ("float8_e4m3fn", Global::Dtype(Dtype::F8_E4M3)),
            ("float8_e5m2", Global::Dtype(Dtype::F8_E5M2)),
            ("complex64", Global::Dtype(Dtype::C64)),
            ("int64", Global::Dtype(Dtype::I64)),
            ("int32", Global::Dtype(Dtype::I32)),
            ("int16", Global::Dtype(Dtype::I16)),
            ("int8", Global::Dtype(Dtype::I8)),
            ("uint64", Global::Dtype(Dtype::U64)),
            ("uint32", Global::Dtype(Dtype::U32)),
            ("uint16", Global::Dtype(Dtype::U16)),
            ("uint8", Global::Dtype(Dtype::U8)),
            ("bool", Global::Dtype(Dtype::BOOL)),
        ],
    ),
    (&["torch._tensor"], &[("_rebuild_from_type_v2", Global::RebuildFromType)]),
    (&["torch.nn.parameter"], &[("Parameter", Global::TensorClass)]),
    (
        &["torch._utils"],
        &[
            ("_rebuild_tensor", Global::RebuildTensor),
            ("_rebuild_tensor_v2", Global::RebuildTensor),
            ("_rebuild_tensor_v3", Global::RebuildTensorV3),
            ("_rebuild_parameter", Global::RebuildParameter),
            ("_rebuild_parameter_with_state", Global::RebuildParameter),
        ],
    ),
    (&["numpy"], &[("ndarray", Global::NumpyArray), ("dtype", Global::NumpyDtype)]),
    (
        &["numpy.core.multiarray", "numpy._core.multiarray"],
        &[("_reconstruct", Global::NumpyReconstruct), ("scalar", Global::NumpyScalar)],
    ),
    (&["numpy.core.numeric", "numpy._core.numeric"], &[("_frombuffer", Global::NumpyFromBuffer)]),
];

/// Where the storages of a pickle may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Storages {
    /// In the pickle: it is a file of its own.
    Inside,
    /// Also beside the pickle, in the same file.
    Beside,
    /// Only beside the pickle: it is inside another.
    Embedded,
}

/// Reads the pickle at the start of `data`.
///
/// `spent` is how many values were read before, in pickles of the same file.
pub(super) fn read(data: &[u8], place: Storages, spent: usize) -> Result<Pickle<'_>, Fault> {
    let mut machine = Machine {
        data,
        at: 0,
        place,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        numpy_dtypes: Vec::new(),
        decoded: 0,
        keys: HashMap::new(),
        made: Pickle {
            root: Value::None,
            lists: Vec::new(),
            dicts: Vec::new(),
            arrays: Vec::new(),
            storages: Vec::new(),
            values: spent,
            end: 0,
        },
    };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(false) => {}
            Ok(true) => {
                machine.made.end = machine.at;
                return Ok(machine.made);
            }
            Err(reason) => return Err(Fault { at, reason }),
        }
    }
}

type Step<T> = Result<T, String>;

struct Machine<'a> {
    data: &'a [u8],
    /// The next byte.
    at: usize,
    place: Storages,
    stack: Vec<Value<'a>>,
    /// How high the stack was at each mark that is open.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    numpy_dtypes: Vec<NumpyDtype>,
    /// Bytes of text and data that were decoded rather than borrowed.
    decoded: usize,
    /// Storages by key.
    keys: HashMap<String, usize>,
    made: Pickle<'a>,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; whether it was the last.
    fn step(&mut self) -> Step<bool> {
        self.spend(1)?;
        let opcode = self.byte()?;
        match opcode {
            b'.' => {
                self.made.root = self.pop()?;
                return Ok(true);
            }
            0x80 => {
                let version = self.byte()?;
                if version > 5 {
                    return Err(format!("pickle protocol {version}; 0 to 5 are read"));
                }
            }
            0x95 => {
                let len = self.len8()?;
                if len > self.data.len() - self.at {
                    return Err(self.short(len));
                }
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?.clone();
                self.stack.push(top);
            }
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'I' => {
                let value = match self.line()? {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    number => Value::Int(parse(number)?),
                };
                self.stack.push(value);
            }
            b'L' => {
                let number = self.line()?;
                let value = parse(number.strip_suffix('L').unwrap_or(number))?;
                self.stack.push(Value::Int(value));
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => {
                let len = self.byte()?;
                self.long(len.into())?;
            }
            0x8b => {
                let len = self.len4()?;
                self.long(len)?;
            }
            b'F' => {
                let value = parse(self.line()?)?;
                self.stack.push(Value::Float(value));
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            b'S' => {
                let bytes = unescape(self.line()?)?;
                self.stack.push(Value::Bytes(Shared::Owned(bytes.into())));
            }
            b'V' => {
                let text = unescape_unicode(self.raw_line()?)?;
                self.stack.push(Value::Text(Shared::Owned(text.into())));
            }
            b'X' => {
                let len = self.len4()?;
                self.text(len)?;
            }
            0x8c => {
                let len = self.byte()?;
                self.text(len.into())?;
            }
            0x8d => {
                let len = self.len8()?;
                self.text(len)?;
            }
            b'C' | b'U' => {
                let len = self.byte()?;
                self.bytes(len.into())?;
            }
            b'B' | b'T' => {
                let len = self.len4()?;
                self.bytes(len)?;
            }
            0x8e | 0x96 => {
                let len = self.len8()?;
                self.bytes(len)?;
            }
            b']' | 0x8f => self.push_list(Vec::new()),
            b')' => self.push_tuple(Vec::new()),
            b'}' => self.push_dict(Vec::new()),
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push_list(items);
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push_tuple(items);
            }
            b'd' => {
                let items = self.pop_mark()?;
                self.push_dict(pairs(items)?);
            }
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0..opcode - 0x84 {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_tuple(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(pairs(items)?)?;
            }
            b'p' => {
                let at = parse(self.line()?)?;
                self.put(at)?;
            }
            b'q' => {
                let at = self.byte()?;
                self.put(at.into())?;
            }
            b'r' => {
                let at = self.len4()?;
                self.put(at)?;
            }
            0x94 => self.put(self.memo.len())?,
            b'g' => {
                let at = parse(self.line()?)?;
                self.get(at)?;
            }
            b'h' => {
                let at = self.byte()?;
                self.get(at.into())?;
            }
            b'j' => {
                let at = self.len4()?;
                self.get(at)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(global(module, name)?);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (module.text(), name.text()) else {
                    return Err(format!("the name of a function is {}", name.kind()));
                };
                self.stack.push(global(module, name)?);
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                global(module, name)?;
                return Err(format!("makes {module}.{name} in the way of old classes"));
            }
            b'R' | 0x81 => {
                let (args, callee) = (self.pop()?, self.pop()?);
                let Value::Global(callee) = callee else {
                    return Err(format!("the file wants to run {}", callee.kind()));
                };
                let result = self.call(callee, &args)?;
                self.stack.push(result);
            }
            b'b' => {
                let state = self.pop()?;
                self.build(&state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(&id)?;
                self.stack.push(storage);
            }
            b'P' => return Err("a reference to something outside, as text".into()),
            b'o' | 0x92 | 0x82..=0x84 | 0x97 | 0x98 => {
                return Err(format!("opcode {opcode:#04x}, which PyTorch does not write"));
            }
            _ => return Err(format!("{opcode:#04x} is no opcode")),
        }
        Ok(false)
    }

    /// Counts `values` more; an error when they are too many.
    fn spend(&mut self, values: usize) -> Step<()> {
        self.made.values = self.made.values.saturating_add(values);
        if self.made.values > MAX_VALUES {
            return Err(format!("the file has more than {MAX_VALUES} values"));
        }
        Ok(())
    }

    /// Counts `len` bytes that are decoded once more; a pickle that has the same piece decoded again
    /// and again is refused.
    fn decode(&mut self, len: usize) -> Step<()> {
        self.decoded = self.decoded.saturating_add(len);
        if self.decoded > 2 * self.data.len() {
            return Err("decodes the same bytes over and over".into());
        }
        Ok(())
    }

    fn short(&self, wanted: usize) -> String {
        let left = self.data.len() - self.at;
        format!("wants {wanted} more bytes but {left} are left; it was cut short or damaged")
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let rest = &self.data[self.at..];
        let Some(taken) = rest.get(..len) else { return Err(self.short(len)) };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("so many were taken"))
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn len4(&mut self) -> Step<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn len8(&mut self) -> Step<usize> {
        let len = u64::from_le_bytes(self.array()?);
        // What does not fit into a usize is longer than any file.
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Step<&'a str> {
        std::str::from_utf8(self.raw_line()?).map_err(|_| "a line that is no text".into())
    }

    fn raw_line(&mut self) -> Step<&'a [u8]> {
        let rest = &self.data[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or_else(|| {
            format!("a line without end in the last {} bytes; it was cut short", rest.len())
        })?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    fn long(&mut self, len: usize) -> Step<()> {
        let bytes = self.take(len)?;
        if len > 16 {
            return Err(format!("an integer of {len} bytes; up to 16 are read"));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        wide[..len].copy_from_slice(bytes);
        self.stack.push(Value::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self, len: usize) -> Step<()> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "text that is not UTF-8")?;
        self.stack.push(Value::Text(Shared::Borrowed(text)));
        Ok(())
    }

    fn bytes(&mut self, len: usize) -> Step<()> {
        let bytes = self.take(len)?;
        self.stack.push(Value::Bytes(Shared::Borrowed(bytes)));
        Ok(())
    }

    /// The lowest place of the stack that may be popped.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<&Value<'a>> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.ok_or_else(|| "takes a value where there is none".into())
    }

    fn pop(&mut self) -> Step<Value<'a>> {
        self.top()?;
        Ok(self.stack.pop().expect("it has a top"))
    }

    /// Everything since the last mark.
    fn pop_mark(&mut self) -> Step<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or("goes back to a mark where there is none")?;
        // Not `split_off`, whose result may keep the capacity of the whole stack.
        Ok(self.stack.drain(mark..).collect())
    }

    fn push_list(&mut self, items: Vec<Value<'a>>) {
        self.made.lists.push(items);
        self.stack.push(Value::List(self.made.lists.len() - 1));
    }

    fn push_tuple(&mut self, items: Vec<Value<'a>>) {
        self.made.lists.push(items);
        self.stack.push(Value::Tuple(self.made.lists.len() - 1));
    }

    fn push_dict(&mut self, pairs: Vec<(Value<'a>, Value<'a>)>) {
        let dict = self.new_dict(pairs);
        self.stack.push(dict);
    }

    fn new_dict(&mut self, pairs: Vec<(Value<'a>, Value<'a>)>) -> Value<'a> {
        self.made.dicts.push(pairs);
        Value::Dict(self.made.dicts.len() - 1)
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Step<()> {
        match *self.top()? {
            Value::List(index) => self.made.lists[index].extend(items),
            ref other => return Err(format!("appends to {}", other.kind())),
        }
        Ok(())
    }

    fn set(&mut self, pairs: Vec<(Value<'a>, Value<'a>)>) -> Step<()> {
        match *self.top()? {
            Value::Dict(index) => self.made.dicts[index].extend(pairs),
            ref other => return Err(format!("sets keys of {}", other.kind())),
        }
        Ok(())
    }

    fn put(&mut self, at: usize) -> Step<()> {
        let value = self.top()?.clone();
        self.memo.insert(at, value);
        Ok(())
    }

    fn get(&mut self, at: usize) -> Step<()> {
        let value = self.memo.get(&at).ok_or_else(|| format!("recalls {at}, which nothing put"))?;
        self.stack.push(value.clone());
        Ok(())
    }

    /// The items of a list or tuple.
    fn items(&self, value: &Value<'a>) -> Step<&[Value<'a>]> {
        match *value {
            Value::List(index) | Value::Tuple(index) => Ok(&self.made.lists[index]),
            ref other => Err(format!("{} where a tuple is wanted", other.kind())),
        }
    }

    /// What a function or class would have made of `args`.
    fn call(&mut self, callee: Global, args: &Value<'a>) -> Step<Value<'a>> {
        // None takes more than ten; a hostile tuple may be long, and called with often.
        let args = self.items(args)?;
        let args: Vec<_> = args.iter().take(10).cloned().collect();
        let wrong = || Err(format!("unexpected arguments of {callee:?}"));
        Ok(match (callee, args.as_slice()) {
            (Global::Dict, []) => self.new_dict(Vec::new()),
            (Global::Dict, [dict @ Value::Dict(_)]) => dict.clone(),
            (Global::Dict, [list @ Value::List(_)]) => {
                self.spend(self.items(list)?.len())?;
                let mut made = Vec::new();
                // Python 2 gives an OrderedDict a list of pairs.
                for pair in self.items(list)? {
                    let [key, value] = self.items(pair)? else { return wrong() };
                    made.push((key.clone(), value.clone()));
                }
                self.new_dict(made)
            }
            (Global::Set, [list @ Value::List(_)]) => list.clone(),
            (Global::Complex, [_, _]) | (Global::Device, [_, ..]) => Value::Opaque,
            (Global::Size, [tuple @ (Value::Tuple(_) | Value::List(_))]) => tuple.clone(),
            (Global::ByteArray, []) => Value::Bytes(Shared::Borrowed(&[])),
            (Global::ByteArray, [bytes @ Value::Bytes(_)]) => bytes.clone(),
            (Global::Encode | Global::ByteArray, [Value::Text(text), encoding]) => {
                if !matches!(encoding.text(), Some("latin1" | "latin-1")) {
                    return wrong();
                }
                self.decode(text.len())?;
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
                let bytes = bytes.ok_or("bytes as text that is not Latin-1")?;
                Value::Bytes(Shared::Owned(bytes.into()))
            }
            (Global::LoadFromBytes, [Value::Bytes(bytes)]) => {
                if self.place == Storages::Embedded {
                    return Err("a file in a file in a file".into());
                }
                self.decode(bytes.len())?;
                let (storage, values) = super::torch::embedded_storage(bytes, self.made.values)?;
                self.made.values = values;
                self.new_storage(storage)
            }
            // _rebuild_tensor, and _rebuild_tensor_v2 with requires_grad, hooks, metadata.
            (
                Global::RebuildTensor,
                [Value::Storage(storage), offset, shape, strides, rest @ ..],
            ) => {
                if let Some(Value::Dict(index)) = rest.get(2)
                    && !self.made.dicts[*index].is_empty()
                {
                    return Err("a lazily conjugated or negated array, which is not read".into());
                }
                let dtype = self.made.storages[*storage].dtype;
                self.new_array(*storage, dtype, offset, shape, strides)?
            }
            (
                Global::RebuildTensorV3,
                [
                    Value::Storage(storage),
                    offset,
                    shape,
                    strides,
                    _,
                    _,
                    Value::Global(Global::Dtype(dtype)),
                    ..,
                ],
            ) => self.new_array(*storage, *dtype, offset, shape, strides)?,
            (Global::RebuildParameter, [array @ Value::Array(_), ..]) => array.clone(),
            (
                Global::RebuildFromType,
                [Value::Global(made_by), Value::Global(Global::TensorClass), args, _],
            ) if matches!(
                made_by,
                Global::RebuildTensor | Global::RebuildTensorV3 | Global::RebuildParameter
            ) =>
            {
                self.call(*made_by, args)?
            }
            (Global::NumpyReconstruct, [Value::Global(Global::NumpyArray), ..]) => {
                let bytes = Shared::Borrowed(&[][..]);
                let empty =
                    Storage { source: Source::Bytes(bytes, 0..0), dtype: Dtype::U8, size: 0 };
                let Value::Storage(storage) = self.new_storage(empty) else { unreachable!() };
                let (shape, strides) = (vec![0], vec![1]);
                let array = Array { storage, dtype: Dtype::U8, offset: 0, shape, strides };
                self.made.arrays.push(array);
                Value::Array(self.made.arrays.len() - 1)
            }
            (Global::NumpyDtype, [code, ..]) => {
                let code = code.text().unwrap_or_default();
                // A byte order of its own may come with the code, or later with the state.
                let (order, plain) = match code.as_bytes() {
                    [order @ (b'<' | b'>' | b'|' | b'='), ..] => (*order, &code[1..]),
                    _ => (b'<', code),
                };
                let big_endian = order == b'>';
                match numpy_dtype(plain) {
                    Some(dtype) => {
                        self.numpy_dtypes.push(NumpyDtype { dtype, big_endian });
                        Value::NumpyDtype(self.numpy_dtypes.len() - 1)
                    }
                    None => return Err(format!("NumPy's type {}, which is not read", quote(code))),
                }
            }
            (Global::NumpyScalar, [Value::NumpyDtype(_), ..]) => Value::Opaque,
            (
                Global::NumpyFromBuffer,
                [Value::Bytes(bytes), Value::NumpyDtype(dtype), shape, order, axes @ ..],
            ) => {
                let shape = self.sizes(shape)?;
                let fortran = order.text() == Some("F");
                let mut array = self.numpy_array(bytes.clone(), *dtype, shape, fortran)?;
                // Neither order: the axes of an array in C's order, transposed.
                if let ([axes], Some("K")) = (axes, order.text()) {
                    let axes = self.sizes(axes)?;
                    if axes.len() != array.shape.len() || axes.iter().any(|&a| a >= axes.len()) {
                        return wrong();
                    }
                    array.shape = axes.iter().map(|&a| array.shape[a]).collect();
                    array.strides = axes.iter().map(|&a| array.strides[a]).collect();
                }
                self.made.arrays.push(array);
                Value::Array(self.made.arrays.len() - 1)
            }
            _ => return wrong(),
        })
    }

    /// Gives the object on top of the stack its state.
    fn build(&mut self, state: &Value<'a>) -> Step<()> {
        match self.top()?.clone() {
            // Attributes, such as `_metadata` of a state dict.
            Value::Dict(_) | Value::List(_) | Value::Opaque => {}
            Value::NumpyDtype(index) => {
                let order = self.items(state)?.get(1).and_then(Value::text);
                self.numpy_dtypes[index].big_endian = order == Some(">");
            }
            Value::Array(index) => {
                let [_, shape, Value::NumpyDtype(dtype), fortran, Value::Bytes(bytes)] =
                    self.items(state)?
                else {
                    return Err("a NumPy array of unexpected contents".into());
                };
                let (dtype, bytes) = (*dtype, bytes.clone());
                let fortran = matches!(fortran, Value::Bool(true) | Value::Int(1));
                let shape = self.sizes(shape)?;
                self.made.arrays[index] = self.numpy_array(bytes, dtype, shape, fortran)?;
            }
            other => return Err(format!("gives a state to {}", other.kind())),
        }
        Ok(())
    }

    fn numpy_array(
        &mut self,
        bytes: Shared<'a, [u8]>,
        dtype: usize,
        shape: Vec<usize>,
        fortran: bool,
    ) -> Step<Array> {
        let NumpyDtype { dtype, big_endian } = self.numpy_dtypes[dtype];
        if big_endian && dtype.bitsize() > 8 {
            return Err("a big-endian array, which is not read".into());
        }
        let mut strides = vec![1_usize; shape.len()];
        let mut step = 1_usize;
        let mut axes: Vec<usize> = (0..shape.len()).collect();
        if !fortran {
            axes.reverse();
        }
        for axis in axes {
            strides[axis] = step;
            // Too large a product is found when the array is compared with its storage.
            step = step.saturating_mul(shape[axis].max(1));
        }
        let size = bytes.len();
        let storage = Storage { source: Source::Bytes(bytes, 0..size), dtype, size };
        let Value::Storage(storage) = self.new_storage(storage) else { unreachable!() };
        Ok(Array { storage, dtype, offset: 0, shape, strides })
    }

    fn new_storage(&mut self, storage: Storage<'a>) -> Value<'a> {
        self.made.storages.push(storage);
        Value::Storage(self.made.storages.len() - 1)
    }

    fn new_array(
        &mut self,
        storage: usize,
        dtype: Dtype,
        offset: &Value<'a>,
        shape: &Value<'a>,
        strides: &Value<'a>,
    ) -> Step<Value<'a>> {
        let offset = size(offset)?;
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(format!("an array of {} axes, {} strides", shape.len(), strides.len()));
        }
        self.made.arrays.push(Array { storage, dtype, offset, shape, strides });
        Ok(Value::Array(self.made.arrays.len() - 1))
    }

    fn sizes(&self, value: &Value<'a>) -> Step<Vec<usize>> {
        let items = self.items(value)?;
        if items.len() > MAX_AXES {
            return Err(format!("an array of {} axes; up to {MAX_AXES} are read", items.len()));
        }
        items.iter().map(size).collect()
    }

    /// The storage that a persistent id names: `("storage", type, key, device, length)`, in old
    /// files with a view at the end.
    fn persistent(&mut self, id: &Value<'a>) -> Step<Value<'a>> {
        if self.place == Storages::Inside {
            return Err("refers to a storage outside, but is no PyTorch file".into());
        }
        let id = self.items(id)?;
        let [kind, Value::Global(class), key, _, len, view @ ..] = id else {
            return Err("refers to something outside that is no storage".into());
        };
        let dtype = match class {
            Global::TypedStorage(dtype) => *dtype,
            Global::UntypedStorage => Dtype::U8,
            _ => return Err("refers to a storage of no type".into()),
        };
        if kind.text() != Some("storage") || !matches!(view, [] | [Value::None]) {
            return Err("refers to something outside that is no storage".into());
        }
        let key = key.text().ok_or("a storage without name")?;
        let bytes = size(len)?.checked_mul(dtype.bitsize() / 8);
        let bytes = bytes.ok_or_else(|| format!("storage {} of endless length", quote(key)))?;
        if let Some(&known) = self.keys.get(key) {
            let Storage { dtype: before, size, .. } = self.made.storages[known];
            if (before, size) != (dtype, bytes) {
                return Err(format!("storage {} has two types or lengths", quote(key)));
            }
            return Ok(Value::Storage(known));
        }
        let key = key.to_owned();
        self.decode(key.len())?;
        self.keys.insert(key.clone(), self.made.storages.len());
        Ok(self.new_storage(Storage { source: Source::Key(key), dtype, size: bytes }))
    }
}

fn size(value: &Value<'_>) -> Step<usize> {
    match value {
        Value::Int(int) => usize::try_from(*int).map_err(|_| format!("{int} as a size")),
        other => Err(format!("{} as a size", other.kind())),
    }
}

fn parse<T: std::str::FromStr>(number: &str) -> Step<T> {
    number.trim().parse().map_err(|_| format!("{} is no number", quote(number)))
}

/// The function or class of that name.
fn global(module: &str, name: &str) -> Step<Value<'static>> {
    let modules = GLOBALS.iter().filter(|(modules, _)| modules.contains(&module));
    let found = modules.flat_map(|(_, names)| names.iter()).find(|(known, _)| *known == name);
    match found {
        Some((_, global)) => Ok(Value::Global(*global)),
        None => {
            let name = quote(&format!("{module}.{name}"));
            Err(format!("the file wants to run {name}, which is not read"))
        }
    }
}

/// Foreign text for a message: without control characters, and not too long.
pub(super) fn quote(text: &str) -> String {
    const SHOWN: usize = 100;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// NumPy's codes, without the byte order.
const NUMPY: &[(&str, Dtype)] = &[
    ("f8", Dtype::F64),
    ("f4", Dtype::F32),
    ("f2", Dtype::F16),
    ("c8", Dtype::C64),
    ("i8", Dtype::I64),
    ("i4", Dtype::I32),
    ("i2", Dtype::I16),
    ("i1", Dtype::I8),
    ("u8", Dtype::U64),
    ("u4", Dtype::U32),
    ("u2", Dtype::U16),
    ("u1", Dtype::U8),
    ("b1", Dtype::BOOL),
];

fn numpy_dtype(code: &str) -> Option<Dtype> {
    NUMPY.iter().find(|(known, _)| *known == code).map(|(_, dtype)| *dtype)
}

/// NumPy's code for elements.
pub(super) fn numpy_code(dtype: Dtype) -> Option<&'static str> {
    NUMPY.iter().find(|(_, known)| *known == dtype).map(|(code, _)| *code)
}

fn pairs<'a>(items: Vec<Value<'a>>) -> Step<Vec<(Value<'a>, Value<'a>)>> {
    if items.len() % 2 == 1 {
        return Err("a key without value".into());
    }
    let mut items = items.into_iter();
    Ok(std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect())
}

/// A string literal of Python 2.
fn unescape(line: &str) -> Step<Vec<u8>> {
    let quote = line.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let inner = quote.and_then(|q| line[1..].strip_suffix(q)).ok_or("a string without quotes")?;
    let mut bytes = inner.bytes();
    let mut out = Vec::with_capacity(inner.len());
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(other @ (b'\\' | b'\'' | b'"')) => other,
            Some(b'x') => code(&mut bytes, 2)? as u8,
            _ => return Err("a string with an unknown escape".into()),
        });
    }
    Ok(out)
}

/// Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
fn unescape_unicode(line: &[u8]) -> Step<String> {
    let mut bytes = line.iter().copied().peekable();
    let mut out = String::with_capacity(line.len());
    while let Some(byte) = bytes.next() {
        let digits = match (byte, bytes.peek()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                out.push(byte.into());
                continue;
            }
        };
        bytes.next();
        let c = char::from_u32(code(&mut bytes, digits)?);
        out.push(c.ok_or("text with a character that does not exist")?);
    }
    Ok(out)
}

/// A number of so many hexadecimal digits.
fn code(bytes: &mut impl Iterator<Item = u8>, digits: usize) -> Step<u32> {
    (0..digits).try_fold(0, |value, _| {
        let digit = bytes.next().and_then(|b| (b as char).to_digit(16));
        digit.map(|digit| value << 4 | digit).ok_or_else(|| "text with an unknown escape".into())
    })
}
