// The icons of the buttons. Their names are told by the buttons' labels.

const NAMESPACE = "http://www.w3.org/2000/svg";
const PATHS = {
  play: "M8 5v14l11-7z",
  pause: "M7 5h4v14H7zM13 5h4v14h-4z",
  next: "M6 5v14l9-7zM16 5h2.5v14H16z",
  previous: "M18 5v14l-9-7zM5.5 5H8v14H5.5z",
  sound: "M4 9v6h4l5 5V4L8 9zM16 8.5a5 5 0 0 1 0 7v-7zM16 4.5a8.5 8.5 0 0 1 0 15v-2a6.5 6.5 0 0 0 0-11z",
  muted: "M4 9v6h4l5 5V4L8 9zM15.5 9.5l1.4-1.4 5 5-1.4 1.4zM15.5 13.1l5-5 1.4 1.4-5 5z",
  star: "M12 3.6l2.6 5.3 5.8.8-4.2 4.1 1 5.8-5.2-2.7-5.2 2.7 1-5.8-4.2-4.1 5.8-.8z",
};

export function icon(name) {
  const image = document.createElementNS(NAMESPACE, "svg");
  image.setAttribute("viewBox", "0 0 24 24");
  image.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(NAMESPACE, "path");
  path.setAttribute("d", PATHS[name]);
  image.append(path);
  return image;
}
