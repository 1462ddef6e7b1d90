// What the songs cost that were submitted. Amounts are exact: whole numbers of the smallest part of a unit.

// As airflow_provider_whisul.tracks.submissions makes the key: how many songs, the price of one, its unit.
const SUBMITTED_KEY = /^whisul_submitted_(\d{1,9})_(\d{1,7})(?:\.(\d{1,9}))?_([A-Za-z0-9-]*)$/;
const MAX_DECIMALS = 9;
const CREDIT = /^(credit)s?$/i;

// The songs, the price and the unit in an XCom's key, null if the key holds none.
export function readSubmitted(key) {
  const [found, songs, whole, fraction = "", unit] = SUBMITTED_KEY.exec(key) ?? [null];
  if (found === null) return null;
  return {
    songs: Number(songs),
    price: BigInt(whole + fraction.padEnd(MAX_DECIMALS, "0")),
    decimals: fraction.length,
    unit: decodeUnit(unit),
  };
}

function decodeUnit(unit) {
  try {
    return decodeURIComponent(unit.replaceAll("-", "%"));
  } catch {
    return unit;
  }
}

// Such as "Submitted 3 songs (0.24 USD)", blank if there is none. Tasks may have prices in different units.
export function describeSubmitted(submitted) {
  const sums = new Map();
  let songs = 0;
  for (const each of submitted) {
    const sum = sums.get(each.unit) ?? { amount: 0n, decimals: 0, unit: each.unit };
    sum.amount += BigInt(each.songs) * each.price;
    sum.decimals = Math.max(sum.decimals, each.decimals);
    sums.set(each.unit, sum);
    songs += each.songs;
  }
  if (songs === 0) return "";
  const amounts = [...sums.values()].map(formatAmount).join(" + ");
  return `Submitted ${songs.toLocaleString("en")} ${songs === 1 ? "song" : "songs"} (${amounts})`;
}

function formatAmount({ amount, decimals, unit }) {
  const one = 10n ** BigInt(MAX_DECIMALS);
  const fraction = String(amount % one).padStart(MAX_DECIMALS, "0").slice(0, decimals);
  const number = (amount / one).toLocaleString("en") + (fraction && `.${fraction}`);
  const credit = CREDIT.exec(unit);
  if (credit !== null) return `${number} ${credit[1]}${amount === one ? "" : "s"}`;
  return unit ? `${number} ${unit}` : number;
}
