// How many songs were submitted, and what they cost. Amounts are exact: whole numbers of the smallest part of a unit.

// As airflow_provider_whisul.tracks.submissions makes the key: how many songs and, where it is known, the price of one
// and its unit.
const SUBMITTED_KEY = /^whisul_submitted_(\d{1,9})(?:_(\d{1,7})(?:\.(\d{1,9}))?_([A-Za-z0-9-]*))?$/;
const MAX_DECIMALS = 9;
const CREDIT = /^(credit)s?$/i;

// The songs and the price in an XCom's key, null if the key holds none. The price is null where it is not known.
export function readSubmitted(key) {
  const [found, songs, whole, fraction = "", unit] = SUBMITTED_KEY.exec(key) ?? [null];
  if (found === null) return null;
  if (whole === undefined) return { songs: Number(songs), price: null };
  const amount = BigInt(whole + fraction.padEnd(MAX_DECIMALS, "0"));
  return { songs: Number(songs), price: { amount, decimals: fraction.length, unit: decodeUnit(unit) } };
}

function decodeUnit(unit) {
  try {
    return decodeURIComponent(unit.replaceAll("-", "%"));
  } catch {
    return unit;
  }
}

// Such as "3 submitted (0.24 USD)", blank if there is none. Tasks may have prices in different units, or none.
export function describeSubmitted(submitted) {
  const sums = new Map();
  let songs = 0;
  let priced = 0;
  for (const each of submitted) {
    songs += each.songs;
    if (each.price === null) continue;
    priced += each.songs;
    const { amount, decimals, unit } = each.price;
    const sum = sums.get(unit) ?? { amount: 0n, decimals: 0, unit };
    sum.amount += BigInt(each.songs) * amount;
    sum.decimals = Math.max(sum.decimals, decimals);
    sums.set(unit, sum);
  }
  if (songs === 0) return "";
  const text = `${songs.toLocaleString("en")} submitted`;
  if (priced === 0) return text;
  const amounts = [...sums.values()].map(formatAmount).join(" + ");
  return `${text} (${amounts}${priced < songs ? ` for ${priced.toLocaleString("en")} of them` : ""})`;
}

function formatAmount({ amount, decimals, unit }) {
  const one = 10n ** BigInt(MAX_DECIMALS);
  const fraction = String(amount % one).padStart(MAX_DECIMALS, "0").slice(0, decimals);
  const number = (amount / one).toLocaleString("en") + (fraction && `.${fraction}`);
  const credit = CREDIT.exec(unit);
  if (credit !== null) return `${number} ${credit[1]}${amount === one ? "" : "s"}`;
  return unit ? `${number} ${unit}` : number;
}
