// The document's address is relative to the page's, so that both may lie below any prefix that a proxy puts in front.
window.ui = SwaggerUIBundle({
  url: "../metadata.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  // The default asks a validator on the internet.
  validatorUrl: null,
});

// The way to the service's other pages.
fetch("links.json").then((response) => response.json()).then((links) => {
  const nav = document.createElement("nav");
  nav.style.cssText = "max-width: 1460px; margin: 0 auto; padding: 12px 20px 0; font: 15px system-ui, sans-serif;";
  for (const [name, address] of [["Service", "../../"], ...(links.dashboard ? [["Dashboard", "../../dashboard/"]] : [])]) {
    const link = document.createElement("a");
    link.textContent = name;
    link.href = address;
    link.style.marginRight = "20px";
    nav.append(link);
  }
  document.body.prepend(nav);
});
